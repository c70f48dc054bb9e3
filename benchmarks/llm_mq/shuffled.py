"""Do the scores know which layers matter? Our plan against plans of equal bytes from the same scores, given to other layers.

    python benchmarks/llm_mq/shuffled.py --model demo [--cache FOLDER]

At 3 stored bits of the blocks' linears (embedding and head stay at 16), int2, int3 and int4 in groups of 128, outliers 0 or 0.5 %:
the plan solved from our scores; ten solved after the scores of layers of equal shape were shuffled among them; one from sizes
alone (a layer's score: its number of weights times the choice's mean score a weight); and the reverse, which gives the scores
of each shape in the opposite order. All have the same scales. Writes `results/shuffled_MODEL.json` and `.md`.
"""

import argparse
import json
import math
import random
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from curves import MEASURED, OURS, difference, kl, linears_by, planner_of, told
from opening import described, opened
from single_layers import RESULTS
from texts import unused_documents, windows

from bitbudget.allocation import Unit, solve
from bitbudget.models.layers import Layer
from bitbudget.pipeline.budgets import BYTES, CODE_BITS, DISK, MEMORY, Budget
from bitbudget.pipeline.effort import WINDOW
from bitbudget.pipeline.guard import Candidate, by_document
from bitbudget.pipeline.offers import Prices, chosen
from bitbudget.pipeline.prepare import Preparation
from bitbudget.pipeline.progress import Silent
from bitbudget.pipeline.solving import offered, restricted

BITS, SHUFFLES, CHUNK = 3.0, 10, 7


def given(units: Sequence[Unit], scores: Mapping[str, Sequence[float]]) -> tuple[Unit, ...]:
    """The units with other scores, in the order of their points."""
    return tuple(
        replace(
            unit,
            points=tuple(
                replace(point, score=score) for point, score in zip(unit.points, scores[unit.name], strict=True)
            ),
        )
        for unit in units
    )


def own_scores(units: Sequence[Unit]) -> dict[str, list[float]]:
    return {unit.name: [max(point.score, 0.0) for point in unit.points] for unit in units}


def alike(layers: Sequence[Layer]) -> list[list[str]]:
    """Names of the blocks' linears of each shape."""
    found: dict[tuple[int, int], list[str]] = defaultdict(list)
    for layer in layers:
        if layer.kind == "linear":
            found[layer.shape].append(layer.name)
    return list(found.values())


def shuffled(scores: Mapping[str, list[float]], groups: Sequence[Sequence[str]], seed: int) -> dict[str, list[float]]:
    generator, found = random.Random(seed), dict(scores)
    for names in groups:
        order = list(names)
        generator.shuffle(order)
        found |= {name: scores[other] for name, other in zip(names, order, strict=True)}
    return found


def reversed_order(scores: Mapping[str, list[float]], groups: Sequence[Sequence[str]]) -> dict[str, list[float]]:
    found = dict(scores)
    for names in groups:
        order = sorted(names, key=lambda name: max(scores[name]))
        found |= {name: scores[other] for name, other in zip(order, reversed(order), strict=True)}
    return found


def by_size(scores: Mapping[str, list[float]], layers: Sequence[Layer]) -> dict[str, list[float]]:
    linears = [layer for layer in layers if layer.kind == "linear"]
    weights = {layer.name: math.prod(layer.shape) for layer in linears}
    total = sum(weights.values())
    means = [sum(scores[name][place] for name in weights) / total for place in range(len(scores[linears[0].name]))]
    return dict(scores) | {name: [mean * size for mean in means] for name, size in weights.items()}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="demo", help="demo, twin, or a folder")
    options.add_argument("--name", help="what the results call the model; by default the folder's name")
    options.add_argument("--cache", type=Path, help="keeps what was measured")
    asked = options.parse_args()
    torch.set_num_threads(1)
    name = asked.name or Path(asked.model).name
    with TemporaryDirectory() as folder, opened(asked.model) as source:
        planner = planner_of(source, OURS, asked.cache or Path(folder))
        every = offered(planner.offers, Budget(code_bits=4.0))  # embedding and head at 16 bits
        units = restricted(
            planner.measured(planner.settings.effort.most).table(Prices.of(source), planner.offers, {}), every
        ).units
        linears = sum(math.prod(layer.shape) for layer in source.layers if layer.kind == "linear")
        kept = sum(one.nbytes for one in linears_by(source, "int4:g128") if one.layer.kind != "linear")
        limit = {BYTES: math.floor(BITS * linears / 8) + kept, CODE_BITS: None, DISK: None, MEMORY: None}
        scores, groups = own_scores(units), alike(source.layers)
        tried = {"ours": scores, "by size alone": by_size(scores, source.layers)}
        tried |= {f"shuffled {seed}": shuffled(scores, groups, seed) for seed in range(SHUFFLES)}
        tried |= {"reversed": reversed_order(scores, groups)}
        calibration = planner.calibration()
        preparation = Preparation(calibration, calibration.fold)
        candidates, predicted = [], {}
        for label, own in tried.items():
            plan = {unit: point.label for unit, point in solve(given(units, own), limit).points.items()}
            labels = {(unit.name, point.label): max(point.score, 0.0) for unit in units for point in unit.points}
            predicted[label] = sum(labels[key] for key in plan.items())
            candidates.append(Candidate(label, chosen(planner.offers, plan), preparation, None))
        told("planned")
        sequences = windows(unused_documents(), planner.tokenizer, MEASURED, WINDOW)
        found = {}
        for start in range(0, len(candidates), CHUNK):
            few = candidates[start : start + CHUNK]
            found |= by_document(source, few, sequences, (planner.device, planner.dtype), Silent())
            told(f"measured {len(found)}")
        rows: list[dict[str, Any]] = []
        for candidate in candidates:
            own = found[candidate.name]
            more, se = difference(own, found["ours"])
            linear_bytes = sum(one.nbytes for one in candidate.layers if one.layer.kind == "linear")
            rows.append({
                "plan": candidate.name,
                "bytes": candidate.nbytes,
                "stored_bits": round(8 * linear_bytes / linears, 4),
                "predicted": predicted[candidate.name],
                "kl": kl(own),
                "more_than_ours": more,
                "se": se,
            })  # fmt: skip
        record = {
            "model": described(source),
            "bits": BITS,
            "calibration_sequences": len(planner.sequences),
            "rows": rows,
        }
    (RESULTS / f"shuffled_{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    others = [row["kl"] for row in rows if row["plan"].startswith("shuffled")]
    lines = [
        f"# Shuffled scores, {name}",
        "",
        f"Made by `shuffled.py`: KL in nats per token on {MEASURED} sequences of {WINDOW} tokens of unused text, at "
        f"{BITS} stored bits of the blocks' linears. `predicted` is by our scores for every plan.",
        "",
        "| plan | stored bits | bytes | predicted | KL | more than ours | paired SE |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['plan']} | {row['stored_bits']:.4f} | {row['bytes']:,} | {row['predicted']:.5f} | {row['kl']:.5f} | "
        f"{row['more_than_ours']:+.5f} | {row['se']:.5f} |"
        for row in rows
    ]
    lines += ["", f"Mean of the shuffled: {statistics.mean(others):.5f}; ours: {rows[0]['kl']:.5f}."]
    (RESULTS / f"shuffled_{name}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
