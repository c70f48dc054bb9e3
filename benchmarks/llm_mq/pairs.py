"""Random mixed plans of equal bytes, each measured whole: pairs on which a score has to name the better one.

    python benchmarks/llm_mq/pairs.py --model demo --choices int2:g128,int3:g128,int4:g128 --budget int3:g128 --plans 40

A plan gives every layer, embedding and head too, one of the choices; its bytes are those of storing all by the
budget's choice, to 0.1 %. Writes `results/pairs_MODEL.json`: each plan's choices, bytes and KL(original ‖ stored).
"""

import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from measured import Measured
from opening import described, opened
from single_layers import RESULTS, entry, keep, parser, sequences_of, settings

from bitbudget.models.layers import Layer
from bitbudget.storage import Choice

SLACK = 0.001  # of the budget, by which a plan's bytes may differ from it
TRIES = 100_000
ASTRAY = 0.05  # of the changes that lead away from the budget are made all the same: others may lead nowhere


def plan_bytes(layers: Sequence[Layer], plan: dict[str, str]) -> int:
    """Bytes of the tensors of all layers."""
    return sum(Choice.parse(plan[layer.name]).nbytes(layer.shape) for layer in layers)


def random_plan(
    layers: Sequence[Layer], choices: Sequence[str], budget: int, generator: random.Random
) -> dict[str, str]:
    """Choices at random, then changed at random places until the bytes are those of the budget."""
    costs = [{choice: Choice.parse(choice).nbytes(layer.shape) for choice in choices} for layer in layers]
    picked = [generator.choice(choices) for _ in layers]
    total = sum(cost[choice] for cost, choice in zip(costs, picked, strict=True))
    for _ in range(TRIES):
        if abs(total - budget) <= SLACK * budget:
            return {layer.name: choice for layer, choice in zip(layers, picked, strict=True)}
        place, choice = generator.randrange(len(layers)), generator.choice(choices)
        changed = total + costs[place][choice] - costs[place][picked[place]]
        if abs(changed - budget) <= abs(total - budget) or generator.random() < ASTRAY:
            picked[place], total = choice, changed
    raise ValueError(f"{TRIES} changes of a random plan came to {total} bytes, not to {budget}")


def random_plans(layers: Sequence[Layer], choices: Sequence[str], budget: int, count: int) -> list[dict[str, str]]:
    """`count` different plans, always the same ones for the same layers, choices and budget."""
    generator = random.Random(0)
    plans: list[dict[str, str]] = []
    while len(plans) < count:
        plan = random_plan(layers, choices, budget, generator)
        if plan not in plans:
            plans.append(plan)
    return plans


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--budget", default="int3:g128", help="all layers stored by this choice")
    options.add_argument("--plans", type=int, default=40)
    asked = options.parse_args()
    torch.set_num_threads(asked.threads)
    file = RESULTS / f"pairs_{asked.name or Path(asked.model).name}.json"
    started = time.perf_counter()
    with opened(asked.model) as source:
        sequences = sequences_of(source, asked)
        measured = Measured(source, sequences)
        budget = plan_bytes(source.layers, dict.fromkeys(measured.layers, asked.budget))
        run: dict[str, Any] = {**settings(sequences, asked), "budget": asked.budget, "bytes": budget, "plans": []}
        for plan in random_plans(source.layers, run["choices"], budget, asked.plans):
            loss = measured.plan_kl(plan)
            run["plans"].append({"bytes": plan_bytes(source.layers, plan), **entry(loss), "choices": plan})
            keep(file, described(source), run, "plans")
            print(f"{time.perf_counter() - started:6.0f} s  {loss.kl:.4f} ± {loss.se:.4f}", file=sys.stderr)


if __name__ == "__main__":
    main()
