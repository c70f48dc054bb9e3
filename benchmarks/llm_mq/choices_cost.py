"""What scoring a block costs beside a plain backward pass: contraction with the errors of 8 and of 40 choices.

    python benchmarks/llm_mq/choices_cost.py

One block of the large model's shape (hidden 2048, intermediate 8192, 32/8 heads of 64), random weights, 4 sequences of 512 tokens.
Timed alternately in one sitting: forward and backward with the gradient of every weight; forward and backward with both factors
of every linear captured instead, then `scoring.contract` with the choices' errors. Making the errors (`fit`, and `error` of
all rows, which contraction asks for) is timed apart. Medians. Bounds: 2 times for 8 choices, 4 times for 40.

Run it with OMP_WAIT_POLICY=PASSIVE where the processors are shared.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from bitbudget.models.gradients import Factors, captured_factors, joined
from bitbudget.rounding import Fitted, fit
from bitbudget.scoring import contract
from bitbudget.storage import Choice

RESULTS = Path(__file__).parent / "results"
SEQUENCES, TOKENS = 4, 512
CONFIG = LlamaConfig(
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=1,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    vocab_size=32,
    attn_implementation="sdpa",
)
BITS, GROUPS, OUTLIERS = (2, 3, 4, 5, 6), (32, 64, 128, 256), ("", "+outliers:0.5%")
ALL = tuple(f"int{bits}:g{group}{outliers}" for bits in BITS for group in GROUPS for outliers in OUTLIERS)  # 40
FEW = ALL[::5]


@dataclass(frozen=True)
class Ready:
    """Errors that are made already: `contract` asks for some rows of them."""

    values: Float[Tensor, "out in"]

    def error(self, rows: slice) -> Float[Tensor, "n in"]:
        return self.values[rows]


class Block:
    """The block with everything that its passes need."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.block = LlamaDecoderLayer(CONFIG, 0)
        self.linears = {name: module for name, module in self.block.named_modules() if isinstance(module, nn.Linear)}
        for module in self.linears.values():
            nn.init.normal_(module.weight, std=CONFIG.hidden_size**-0.5)
        self.hidden = [torch.randn(1, TOKENS, CONFIG.hidden_size) for _ in range(SEQUENCES)]
        self.gradients = [torch.randn(1, TOKENS, CONFIG.hidden_size) for _ in range(SEQUENCES)]
        self.places = LlamaRotaryEmbedding(CONFIG)(self.hidden[0], torch.arange(TOKENS)[None])

    def run(self, hidden: Tensor) -> Tensor:
        returned = self.block(hidden, position_embeddings=self.places, attention_mask=None)
        return returned if isinstance(returned, Tensor) else returned[0]

    def plain(self) -> None:
        """Forward, and backward with the gradient of every weight of every sequence."""
        for hidden, gradient in zip(self.hidden, self.gradients, strict=True):
            leaf = hidden.requires_grad_()
            weights = [module.weight for module in self.linears.values()]
            torch.autograd.grad(self.run(leaf), [leaf, *weights], gradient)

    def contracted(self, choices: dict[str, Sequence[Fitted | Ready]]) -> None:
        """Forward, and backward with factors; then the contraction with the choices' errors."""
        factors: dict[str, list[Factors]] = {name: [] for name in self.linears}
        for module in self.linears.values():
            module.weight.requires_grad_(False)
        for hidden, gradient in zip(self.hidden, self.gradients, strict=True):
            with captured_factors(self.linears) as seen:
                leaf = hidden.requires_grad_()
                torch.autograd.grad(self.run(leaf), leaf, gradient)
            for name, calls in seen.items():
                found = joined(calls)
                assert found is not None, "every linear is called"
                factors[name].append(found)
        for name, module in self.linears.items():
            contract(choices[name], factors[name], (module.out_features, module.in_features))
            module.weight.requires_grad_(True)

    def fitted(self, texts: Sequence[str]) -> dict[str, list[Fitted]]:
        return {
            name: [fit(module.weight.detach(), Choice.parse(text)) for text in texts]
            for name, module in self.linears.items()
        }


def every(weight: Fitted) -> Tensor:
    return weight.error(slice(0, weight.weight.shape[0]))


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=3)
    asked = options.parse_args()
    torch.set_num_threads(asked.threads)
    block = Block()
    # The time of a contraction does not depend on the errors' values: a few serve for all choices, and memory stays small.
    shared = {
        name: [Ready(torch.randn_like(module.weight)) for _ in range(2)] for name, module in block.linears.items()
    }
    ready = {
        count: {name: [own[place % 2] for place in range(count)] for name, own in shared.items()} for count in (8, 40)
    }
    block.plain()
    times: dict[str, list[float]] = {"plain": [], "8 choices": [], "40 choices": []}
    making: dict[str, list[float]] = {"fit 8 choices": [], "errors of 8 choices": []}
    for _ in range(asked.rounds):
        times["plain"].append(seconds(block.plain))
        for count in (8, 40):
            times[f"{count} choices"].append(seconds(lambda count=count: block.contracted(ready[count])))
        fits: dict[str, list[Fitted]] = {}
        making["fit 8 choices"].append(seconds(lambda fits=fits: fits.update(block.fitted(FEW))))
        making["errors of 8 choices"].append(
            seconds(lambda fits=fits: [every(one) for own in fits.values() for one in own])
        )
    medians = {name: round(statistics.median(own), 3) for name, own in (times | making).items()}
    record = {
        "block": {"hidden": CONFIG.hidden_size, "intermediate": CONFIG.intermediate_size, "sequences": SEQUENCES},
        "threads": asked.threads,
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", ""),
        "load": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "median_seconds": medians,
        "seconds": {name: [round(value, 3) for value in own] for name, own in (times | making).items()},
        "ratio": {name: round(medians[f"{name} choices"] / medians["plain"], 3) for name in (8, 40)},
        "bounds": {"8": 2, "40": 4},
    }
    (RESULTS / "choices_cost.json").write_text(json.dumps(record, indent=1) + "\n")
    lines = [
        "# The cost of choices",
        "",
        f"Made by `choices_cost.py`: one block of the large model's shape, {SEQUENCES} sequences of {TOKENS} tokens, "
        f"{asked.threads} threads, medians of {asked.rounds} rounds, each taken in turn. "
        f"Load of the machine at the end: {record['load']}.",
        "",
        "| | seconds (median) | all rounds | over plain | bound |",
        "|---|---|---|---|---|",
    ]
    bounds = {"8 choices": 2, "40 choices": 4}
    for name, own in (times | making).items():
        ratio = f"{medians[name] / medians['plain']:.2f}"
        rounds = ", ".join(f"{value:.2f}" for value in own)
        lines.append(f"| {name} | {medians[name]:.2f} | {rounds} | {ratio} | {bounds.get(name, '')} |")
    lines += [
        "",
        "`plain`: forward, and backward with the gradient of every weight. `8 choices`, `40 choices`: forward, backward with",
    ]
    lines += [
        "both factors of every linear, and contraction with errors that are made already. Fits and errors are made once a wave,"
    ]
    lines += ["whatever the number of its sequences."]
    (RESULTS / "choices_cost.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
