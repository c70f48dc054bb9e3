"""Tokens a second and memory of generation through transformers, with the reference kernels and with the CPU kernels.

python benchmarks/cpu/generation.py [--choice int4:g128 …] [--threads 1 2] [--tokens 16] [--blocks 22] [--name NAME]

The model has TinyLlama's shape (2048 wide, 5632 inside, 32 heads of which 4 hold keys, 32,000 tokens) and weights by chance, which
change no time. Each run has a process of its own. Per token after the first: milliseconds in all, those spent in our products, and
those of the same products one after the other without anything between; the rest is transformers' and Python's. Medians of the
tokens. The machine has to be idle. Recorded in results/NAME.json and .md.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from contenders import any_weight
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from bitbudget.kernels import QuantLinear, use_kernels

HERE = Path(__file__).parent
KERNELS = ("reference", "a16", "a8")
PROMPT = 8  # tokens


def main() -> None:
    asked = arguments()
    if asked.one:
        print(json.dumps(measured(asked.choice[0], asked.one, asked.threads[0], asked.tokens, asked.blocks)))
        return
    found = []
    for choice in asked.choice:
        for threads in asked.threads:
            for kernels in KERNELS:
                tokens = 4 if kernels == "reference" else asked.tokens
                command = [sys.executable, __file__, "--one", kernels, "--choice", choice, "--threads", str(threads)]
                command += ["--tokens", str(tokens), "--blocks", str(asked.blocks)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found.append(json.loads(done.stdout.splitlines()[-1]))
                print(found[-1], flush=True)
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"{asked.name}.json").write_text(
        json.dumps({"blocks": asked.blocks, "runs": found}, indent=1) + "\n"
    )
    (HERE / "results" / f"{asked.name}.md").write_text(table(asked.blocks, found))


def measured(choice: str, kernels: str, threads: int, tokens: int, blocks: int) -> dict[str, Any]:
    """One run in this process."""
    torch.set_num_threads(threads)
    before = resident()
    model = built(choice, blocks)
    began = time.perf_counter()
    use_kernels(model, kernels)
    packing = time.perf_counter() - began
    stored = sum(module.choice.nbytes(module.shape) for module in model.modules() if isinstance(module, QuantLinear))
    ids = torch.arange(3, 3 + PROMPT)[None]
    settings = {"do_sample": False, "min_new_tokens": tokens, "max_new_tokens": tokens, "pad_token_id": 0}
    with torch.no_grad():
        model.generate(ids, **(settings | {"min_new_tokens": 2, "max_new_tokens": 2}))
        clock = Clock(model)
        model.generate(ids, **settings)
        clock.remove()
        alone = statistics.median(products_alone(model) for _ in range(tokens))
    token, products = clock.per_token()
    return {
        "choice": choice, "kernels": kernels, "threads": threads, "tokens": tokens, "token_seconds": token,
        "products_seconds": products, "alone_seconds": alone, "resident": resident() - before, "stored": stored,
        "packing_seconds": packing,
    }  # fmt: skip


def built(choice: str, blocks: int) -> LlamaForCausalLM:
    """The model with stored linears; weights of a shape are all the same, but each has memory of its own."""
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=blocks, num_attention_heads=32,
        num_key_value_heads=4, max_position_embeddings=2048, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, leaf = path.rpartition(".")
            stored = any_weight(choice, (module.out_features, module.in_features))
            setattr(model.get_submodule(parent), leaf, QuantLinear.from_stored(stored))
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and parameter.is_meta:
                module._parameters[name] = nn.Parameter(torch.full(parameter.shape, 0.02), requires_grad=False)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


class Clock:
    """When each pass through a model began, and seconds spent in the products of its stored linears since."""

    def __init__(self, model: nn.Module) -> None:
        self._began: list[float] = []
        self._products: list[float] = []
        self._hooks = [model.register_forward_pre_hook(self._next)]
        for module in model.modules():
            if isinstance(module, QuantLinear):
                self._hooks += [module.register_forward_pre_hook(self._start), module.register_forward_hook(self._stop)]

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def per_token(self) -> tuple[float, float]:
        """Median seconds from token to token, and in products; the prompt's pass is left out, and what follows the last."""
        steps = [after - before for before, after in zip(self._began[1:], self._began[2:], strict=False)]
        return statistics.median(steps), statistics.median(self._products[1:])

    def _next(self, *_: Any) -> None:
        self._began.append(time.perf_counter())
        self._products.append(0.0)

    def _start(self, *_: Any) -> None:
        self._entered = time.perf_counter()

    def _stop(self, *_: Any) -> None:
        self._products[-1] += time.perf_counter() - self._entered


def products_alone(model: nn.Module) -> float:
    """Seconds of the products of one token, in the model's order; those that receive one tensor there receive one here."""
    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, QuantLinear)]
    x, seconds = torch.empty(0), 0.0
    for name, module in linears:
        if not name.endswith(("k_proj", "v_proj", "up_proj")):
            x = torch.randn(1, 1, module.in_features)
        began = time.perf_counter()
        module(x)
        seconds += time.perf_counter() - began
    return seconds


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def table(blocks: int, found: list[dict[str, Any]]) -> str:
    lines = [f"# Generation, TinyLlama's shape with {blocks} blocks, random weights", ""]
    lines += ["| choice | threads | kernels | tokens/s | ms a token | of them products | products alone | resident MiB "]
    lines[-1] += "| stored MiB | packing s |"
    lines += ["|---|--:|---|" + "--:|" * 7]
    for run in found:
        sizes = f"{run['resident'] / 2**20:.0f} | {run['stored'] / 2**20:.0f} | {run['packing_seconds']:.1f}"
        times = [1e3 * run[f"{name}_seconds"] for name in ("token", "products", "alone")]
        speed = f"{1e3 / times[0]:.2f} | {' | '.join(f'{value:.1f}' for value in times)}"
        lines.append(f"| {run['choice']} | {run['threads']} | {run['kernels']} | {speed} | {sizes} |")
    return "\n".join(lines) + "\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--choice", nargs="+", default=["int4:g128", "int2:g128"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--blocks", type=int, default=22)
    parser.add_argument("--name", default="generation")
    parser.add_argument("--one", choices=KERNELS, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
