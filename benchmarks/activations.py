"""What rounding activations costs: KL divergence from the original with each of the CPU's kernels, and the time of a prompt.

    python benchmarks/activations.py [--model demo] [--choices int8:g128,int4:g128,int3:g128,int2:g128] [--massive 1,30,300]

Every choice is stored once and loaded with `reference` (floating point), `a16` and `a8`; windows of 512 tokens of
`../shared/text/validation.jsonl`, passages that the packaged text does not hold. Then again for the same function with a massive
activation in every block: a channel between up and down carries so many times as much, and its group's step grows with it. Writes
benchmarks/results/activations.json.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import bitbudget
from bitbudget.calibration.tokenizer import Tokenizer
from bitbudget.data import resolve_model

sys.path.append(str(Path(__file__).parent / "llm_mq"))
from texts import unused_documents, windows

RESULT = Path(__file__).parent / "results" / "activations.json"
KERNELS = ("reference", "a16", "a8")
WINDOW = 512


def log_probabilities(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Of every position but the first, fp64 [tokens - 1, vocabulary]."""
    with torch.no_grad():
        return model(ids[None]).logits[0, 1:].double().log_softmax(-1)


def divergences(model: PreTrainedModel, texts: list[Tensor], wanted: list[Tensor]) -> tuple[Tensor, float]:
    """KL(original ‖ model) of every window, nats a token, and the least seconds that one took."""
    found, least = [], float("inf")
    for ids, one in zip(texts, wanted, strict=True):
        began = time.perf_counter()
        got = log_probabilities(model, ids)
        least = min(least, time.perf_counter() - began)
        found.append((one.exp() * (one - got)).sum(-1).mean())
    return torch.stack(found), least


def measured(folder: Path, texts: list[Tensor], wanted: list[Tensor]) -> dict[str, dict[str, float]]:
    """Of one checkpoint, by kernels; more: what is added to `reference`, with its paired standard error over windows."""
    rows: dict[str, dict[str, float]] = {}
    plain = torch.zeros(len(texts))
    for kernels in KERNELS:
        kl, seconds = divergences(bitbudget.load(folder, kernels=kernels), texts, wanted)
        plain = kl if kernels == "reference" else plain
        more = kl - plain
        rows[kernels] = {
            "kl": float(kl.mean()),
            "more": float(more.mean()),
            "more_se": float(more.std() / len(texts) ** 0.5),
            "seconds_of_a_window": seconds,
        }
    return rows


def write_massive(source: Path, folder: Path, times: float) -> PreTrainedModel:
    """The model with one channel of every block's hidden layer so many times as large, and what reads it as much smaller."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        for block in model.model.layers:
            channel = int(block.mlp.up_proj.weight.norm(dim=1).argmax())
            block.mlp.up_proj.weight[channel] *= times
            block.mlp.down_proj.weight[:, channel] /= times
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return model


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="demo")
    options.add_argument("--choices", default="int8:g128,int4:g128,int3:g128,int2:g128")
    options.add_argument("--massive", default="1,30,300")
    options.add_argument("--windows", type=int, default=48)
    asked = options.parse_args()
    source = resolve_model(asked.model)
    chosen = windows(unused_documents(), Tokenizer.open(source), asked.windows, WINDOW)
    texts = [window.ids for window in chosen]
    found: dict[str, Any] = {"model": asked.model, "windows": len(texts), "threads": torch.get_num_threads(), "massive": {}}
    for times in asked.massive.split(","):
        rows = found["massive"][times] = {}
        with TemporaryDirectory() as folder:
            made = Path(folder) / "source"
            original = write_massive(source, made, float(times))
            wanted = [log_probabilities(original, ids) for ids in texts]
            for choice in asked.choices.split(","):
                out = Path(folder) / choice.replace(":", "-")
                bitbudget.quantize(str(made), choice, out, verify=False)
                rows[choice] = measured(out, texts, wanted)
                added = {kernels: f"{row['kl']:.5f} {row['more']:+.5f}" for kernels, row in rows[choice].items()}
                print(times, choice, added, flush=True)
                RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
