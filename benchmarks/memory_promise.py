"""Does `bitbudget run` keep the memory that it promises? A prompt in chunks of 512 tokens fills nearly the whole context.

    python benchmarks/memory_promise.py [--folder DIR] [--blocks 25] [--context 1024] [--memory 1500MiB,1200MiB,900MiB]

Takes the random checkpoint of large_model.py (about 3 GiB) in the folder of large_plan.py, whose measurements it shares, plans and
stores it for three budgets of `--memory` (without the guard, whose winner takes no more bytes), runs each in a process of its own
and writes benchmarks/results/memory_promise.json.
Peaks are measured twice: by the process itself, the pages of its weight files included, and from outside: RssAnon + RssShmem less
what it held when libraries and tokenizer were loaded.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import large_model
from sampling import sampled

from bitbudget.calibration.tokenizer import Tokenizer
from bitbudget.methods import METHODS
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.budgets import Budget
from bitbudget.pipeline.decide import measure
from bitbudget.pipeline.effort import EFFORTS
from bitbudget.pipeline.memory import memory_promise
from bitbudget.pipeline.offers import chosen
from bitbudget.pipeline.output import DEFAULT_SHARD_BYTES
from bitbudget.pipeline.planning import Planner, Settings
from bitbudget.pipeline.prepare import Preparation
from bitbudget.pipeline.progress import Run, Silent
from bitbudget.pipeline.quantize import Writing, write_checkpoint
from bitbudget.pipeline.solving import offered, output_of, question

RESULT = Path(__file__).parent / "results" / "memory_promise.json"
TOOL = [sys.executable, "-m", "bitbudget"]
NEW_TOKENS = 8


def store(folder: Path, output: Path, budget: int, context: int, cache: Path) -> None:
    """The plan of `--memory` with `--effort fast` and what it makes of the model, without guard and verification."""
    source = SourceModel.open(folder)
    planner = Planner(source, Settings(METHODS["llm-mq"].recipe(), EFFORTS["fast"], cache=cache), Run("cpu"))
    promise = memory_promise(source, context, None, planner.device, None)
    words = question(source, Budget(memory=budget), promise.beside_weights, DEFAULT_SHARD_BYTES, planner.settings.recipe.order)
    _, _, plan = measure(planner, words, offered(planner.offers, words.budget))
    calibration, layers = planner.calibration(), chosen(planner.offers, plan.layers)
    made = output_of(source, layers, DEFAULT_SHARD_BYTES, {"method": "llm-mq", "budget": {"memory": budget}})
    text = {"name": "none", "sha256": ""}
    write_checkpoint(source, Writing(made, "random", text, Preparation(calibration, calibration.fold), plan), output, Silent())


def prompt_of(folder: Path, tokens: int) -> str:
    """A text of so many tokens."""
    tokenizer = Tokenizer.open(folder)
    words = tokens
    while len(tokenizer.prefix) + len(tokenizer.encode(" the" * words)) > tokens:
        words -= 1
    return " the" * words


def kept(folder: Path, context: int, dtype: str = "auto") -> dict[str, Any]:
    """Run a finished checkpoint until its context is full; what was promised and what was measured."""
    prompt = prompt_of(folder, context - NEW_TOKENS)
    words = ["--raw", "--context", str(context), "--max-new-tokens", str(NEW_TOKENS), "--dtype", dtype, "--json"]
    run = sampled([*TOOL, "run", str(folder), prompt, *words, "--device", "cpu"])
    assert run.code == 0, run.output
    found = json.loads(run.output[run.output.index("{") : run.output.rindex("}") + 1])
    memory = found["memory"]
    beside = memory["peak"] - memory["weights"] - memory["packing"]
    outside = run.peak_bytes - memory["libraries"]
    return memory | {
        "prompt_tokens": found["prompt_tokens"],
        "tokens": found["tokens"],
        "seconds": round(found["seconds"], 1),
        "peak_from_outside": outside,
        "kept": max(memory["peak"], outside) <= memory["promised"],
        "beside_weights": beside,
        "beside_weights_kept": beside <= memory["promise"]["beside_weights"],
        "promised_over_measured": round(memory["promise"]["beside_weights"] / beside, 3),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--folder", type=Path, default=Path("large-plan"))
    arguments.add_argument("--memory", default="1500MiB,1200MiB,900MiB")
    arguments.add_argument("--blocks", type=int, default=large_model.BLOCKS)
    arguments.add_argument("--context", type=int, default=1024)
    arguments.add_argument("--result", type=Path, default=RESULT)
    options = arguments.parse_args()
    large_model.BLOCKS = options.blocks
    source = options.folder / "model"
    if not (source / "config.json").is_file():
        large_model.make(source)
    result: dict[str, Any] = {"blocks": options.blocks, "context": options.context, "runs": {}}
    for memory in options.memory.split(","):
        output = options.folder / f"memory-{memory}"
        shutil.rmtree(output, ignore_errors=True)
        store(source, output, int(memory.removesuffix("MiB")) << 20, options.context, options.folder / "cache")
        result["runs"][memory] = kept(output, options.context)
        shutil.rmtree(output)
        print(memory, json.dumps(result["runs"][memory], indent=2))
    options.result.parent.mkdir(exist_ok=True)
    options.result.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
