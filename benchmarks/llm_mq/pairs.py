"""Random mixed plans of equal bytes, each measured whole beside the sum of its layers' scores: does the sum name the better plan?

    python benchmarks/llm_mq/pairs.py --model demo [--bits 3.0,3.5,4.0] [--plans 40] [--scores 128]

A plan gives every layer, embedding and head too, one of the widths near the bits asked for; its bytes are those of the mean width,
to 0.1 %. Measured on passages that nothing was calibrated on, predicted by the default score from other text. Writes
`results/pairs_MODEL.json`: every plan, and Pearson's correlation and the slope of measured over predicted.
"""

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from measured import Measured
from opening import described, opened
from predictions import planner_of, predicted
from scipy.stats import linregress
from single_layers import RESULTS, entry, keep, parser, sequences_of, settings

from bitbudget.models.layers import Layer
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.table import DEFAULT
from bitbudget.storage import Choice

SLACK = 0.001  # of the budget, by which a plan's bytes may differ from it
TRIES = 100_000
ASTRAY = 0.05  # of the changes that lead away from the budget are made all the same: others may lead nowhere
WIDTHS = {3.0: (2, 3, 4), 3.5: (2, 3, 4, 5), 4.0: (3, 4, 5)}
Plan = dict[str, str]


def plan_bytes(layers: Sequence[Layer], plan: Plan) -> int:
    """Bytes of the tensors of all layers."""
    return sum(Choice.parse(plan[layer.name]).nbytes(layer.shape) for layer in layers)


def budget_of(layers: Sequence[Layer], bits: float) -> int:
    """Bytes of all layers at a mean width: between those of the widths below and above."""
    low, part = int(bits), bits % 1
    below, above = (
        plan_bytes(layers, {layer.name: f"int{width}:g128" for layer in layers}) for width in (low, low + 1)
    )
    return round(below + part * (above - below))


def random_plan(layers: Sequence[Layer], choices: Sequence[str], budget: int, generator: random.Random) -> Plan:
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


def random_plans(layers: Sequence[Layer], choices: Sequence[str], budget: int, count: int) -> list[Plan]:
    """`count` different plans, always the same ones for the same layers, choices and budget."""
    generator = random.Random(0)
    plans: list[Plan] = []
    while len(plans) < count:
        plan = random_plan(layers, choices, budget, generator)
        if plan not in plans:
            plans.append(plan)
    return plans


def scores_of(source: SourceModel, count: int) -> dict[tuple[str, str], float]:
    """(layer, choice) -> predicted loss, every width offered at once."""
    with tempfile.TemporaryDirectory() as cache:
        planner = planner_of(source, "sampled", count, Path(cache))
        choices = [f"int{width}:g128" for width in range(2, 7)]
        return predicted(planner, planner.measured(count), DEFAULT, count, choices)


def compared(plans: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Measured against predicted losses of one budget's plans."""
    found = linregress([plan["predicted"] for plan in plans], [plan["kl"] for plan in plans])
    ratio = statistics.median(plan["kl"] / plan["predicted"] for plan in plans)
    return {
        "pearson": round(float(found.rvalue), 4),
        "slope": round(float(found.slope), 4),
        "median_ratio": round(ratio, 4),
    }


def main() -> None:
    options = parser(__doc__)
    options.set_defaults(sequences=96, length=256)
    options.add_argument("--bits", default="3.0,3.5,4.0")
    options.add_argument("--plans", type=int, default=40)
    options.add_argument("--scores", type=int, default=128, help="sequences that scores are taken from")
    asked = options.parse_args()
    torch.set_num_threads(asked.threads)
    file = RESULTS / f"pairs_{asked.name or Path(asked.model).name}.json"
    started = time.perf_counter()
    with opened(asked.model) as source:
        sequences = sequences_of(source, asked)
        measured, scores = Measured(source, sequences), scores_of(source, asked.scores)
        layers = [layer for layer in source.layers if layer.name in measured.layers]
        for bits in (float(word) for word in asked.bits.split(",")):
            asked.choices = ",".join(f"int{width}:g128" for width in WIDTHS[bits])
            budget = budget_of(layers, bits)
            run: dict[str, Any] = {**settings(sequences, asked), "bits": bits, "bytes": budget, "scores": asked.scores}
            plans: list[dict[str, Any]] = []
            for plan in random_plans(layers, run["choices"], budget, asked.plans):
                loss, sum_of_scores = measured.plan_kl(plan), sum(scores[choice] for choice in plan.items())
                one = {"bytes": plan_bytes(layers, plan), **entry(loss), "predicted": float(f"{sum_of_scores:.7g}")}
                plans.append({**one, "choices": plan})
                print(f"{time.perf_counter() - started:6.0f} s  {one}", file=sys.stderr)
            run["measured"] = {**compared(plans), "plans": plans}
            keep(file, described(source), run, "measured")
            print(bits, compared(plans), file=sys.stderr)


if __name__ == "__main__":
    main()
