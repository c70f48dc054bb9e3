"""Which estimator tells what storing a layer really costs: each against the measured loss of every layer alone.

    python benchmarks/llm_mq/predictions.py --models demo,twin,FOLDER --sequences 16,128

Needs `results/single_layers_MODEL.json`. Predicted from sequences of at most 512 tokens of `../shared/text/calibration.jsonl`,
measured on other text; round to nearest, minimum and maximum, groups of 128, no scales. Writes `results/predictions.json` and
`.md`: Spearman's correlation over the layers, and median and standard deviation of log(measured / predicted).
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from opening import described, opened
from scipy.stats import spearmanr
from single_layers import RESULTS
from texts import SHARED

from bitbudget.methods import LlmMq
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.effort import Effort
from bitbudget.pipeline.planning import Planner, Settings
from bitbudget.pipeline.progress import Run
from bitbudget.pipeline.table import DEFAULT, Measured
from bitbudget.scoring import composite

CALIBRATION = SHARED / "text" / "calibration.jsonl"
LOW, HIGH = ("int2:g128", "int3:g128", "int4:g128"), ("int4:g128", "int5:g128", "int6:g128")
SAMPLED = ("fisher", "whole", "by-row", "first", "per-sample", "rows")
Scores = dict[tuple[str, str], float]


def planner_of(source: SourceModel, labels: str, most: int, cache: Path) -> Planner:
    """Unfolded, rounded to nearest, as the measured losses are."""
    bits = (2, 3, 4, 5, 6)
    tables = tuple(f"int{width}:g128" for width in bits)
    method = LlmMq(
        bits=bits, groups=(128,), outliers=("0",), range="minmax", scaling=False, tables=tables, labels=labels
    )
    return Planner(source, Settings(method.recipe(), Effort("", 16, most), CALIBRATION, cache), Run())


def predicted(planner: Planner, measured: Measured, estimator: str, count: int, choices: Sequence[str]) -> Scores:
    """(layer, choice) -> score, from the first sequences. The composite joins only these choices, as if no others were offered."""
    every = [offer.layer.name for offer in planner.offers for _ in offer.stored]
    texts = [str(planned.choice) for offer in planner.offers for planned in offer.stored]
    kept = [number for number, text in enumerate(texts) if text in choices]
    first = slice(0, count)
    if estimator == DEFAULT:
        squares = (one[kept] for one in measured.squares(planner.offers, first))
        scores = composite(*squares, measured.tokens[first]).score.tolist()
        return {(every[number], texts[number]): score for number, score in zip(kept, scores, strict=True)}
    found = measured.estimates(planner.offers, first, estimator)
    return {(every[number], texts[number]): found[every[number], texts[number]][0] for number in kept}


def truths(file: Path, source: SourceModel) -> dict[tuple[str, ...], Scores]:
    """The finished runs of a results file of this model, by their choices."""
    found = json.loads(file.read_text()) if file.exists() else {"model": None, "runs": []}
    losses: dict[tuple[str, ...], Scores] = {}
    for run in found["runs"] if found["model"] == described(source) else ():
        choices, layers = tuple(run["choices"]), run["layers"]
        finished = len(layers) == len(source.layers) and all(len(own) == len(choices) for own in layers.values())
        if choices in (LOW, HIGH) and finished:
            losses[choices] = {(name, choice): one["kl"] for name, own in layers.items() for choice, one in own.items()}
    return losses


def compared(scores: Scores, losses: Scores, choice: str) -> dict[str, float]:
    """Of one choice over all layers."""
    names = [name for name, own in losses if own == choice]
    found = [(losses[name, choice], scores[name, choice]) for name in names]
    logs = [math.log(loss / score) for loss, score in found if loss > 0 and score > 0]
    ratios = [math.exp(log) for log in logs]
    return {
        "layers": len(found),
        "spearman": round(float(spearmanr(*zip(*found, strict=True)).statistic), 4),
        "median_ratio": round(statistics.median(ratios), 4),
        "median_log": round(statistics.median(logs), 4),
        "sd_log": round(statistics.stdev(logs), 4),
        "within_0.8_1.25": round(sum(0.8 <= ratio <= 1.25 for ratio in ratios) / len(found), 4),
        "least_ratio": round(min(ratios), 4),
        "largest_ratio": round(max(ratios), 4),
    }


def rows_of(
    source: SourceModel, model: str, counts: Sequence[int], folder: Path, kinds: Sequence[str]
) -> list[dict[str, Any]]:
    """One model: every estimator, number of sequences and choice."""
    losses = truths(folder / f"single_layers_{model}.json", source)
    rows: list[dict[str, Any]] = []
    for labels, names in (("sampled", SAMPLED), ("text", ("first",))):
        if labels not in kinds:
            continue
        with TemporaryDirectory() as cache:
            planner = planner_of(source, labels, max(counts), Path(cache))
            for count in counts:
                started = time.perf_counter()
                measured = planner.measured(count)
                print(f"{model} {labels} {count}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
                for choices, own in losses.items():
                    for name in names:
                        scores = predicted(planner, measured, name, count, choices)
                        for choice in choices:
                            row = {"model": model, "estimator": name, "labels": labels, "sequences": measured.sequences}
                            row |= {"text": "low" if choices == LOW else "high", "choice": choice}
                            rows.append(row | compared(scores, own, choice))
    return rows


def report(rows: Sequence[Mapping[str, Any]]) -> str:
    """Tables for people."""
    lines = [
        "# Estimators against measured losses of single layers",
        "",
        "Made by `predictions.py`. Each cell: Spearman over the layers, then median of measured / predicted and standard deviation",
        "of its logarithm. `first` has no unit of its own but nats; it is no estimate of KL, so only its order counts.",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        for count in dict.fromkeys(row["sequences"] for row in rows if row["model"] == model):
            own = [row for row in rows if (row["model"], row["sequences"], row["text"]) == (model, count, "low")]
            if not own:
                continue
            choices = list(dict.fromkeys(row["choice"] for row in own))
            lines += ["", f"## {model}, {count} sequences of at most 512 tokens", ""]
            lines += ["| estimator | " + " | ".join(choices) + " |", "|---|" + "---|" * len(choices)]
            for name, labels in dict.fromkeys((row["estimator"], row["labels"]) for row in own):
                cells = [
                    f"{row['spearman']:.3f}; {row['median_ratio']:.2f}, {row['sd_log']:.2f}"
                    for row in own
                    if (row["estimator"], row["labels"]) == (name, labels)
                ]
                lines.append(f"| {name} [{labels}] | " + " | ".join(cells) + " |")
    lines += ["", "## 4, 5 and 6 bits (measured on 1,024 sequences of 128 tokens)", ""]
    lines += [
        "| model | estimator | sequences | choice | Spearman | median | sd of log | within 0.8 … 1.25 | least | largest |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|---|"]
    lines += [
        f"| {row['model']} | {row['estimator']} | {row['sequences']} | {row['choice']} | {row['spearman']:.3f} | "
        f"{row['median_ratio']:.3f} | {row['sd_log']:.3f} | {row['within_0.8_1.25']:.3f} | {row['least_ratio']:.3f} | "
        f"{row['largest_ratio']:.3f} |"
        for row in rows
        if row["text"] == "high" and row["estimator"] in ("fisher", "whole", "by-row")
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--models", default="demo,twin")
    options.add_argument("--sequences", default="16,128")
    options.add_argument("--measured", type=Path, default=RESULTS, help="folder of the measured losses")
    options.add_argument("--labels", default="sampled,text", help="kinds of labels")
    asked = options.parse_args()
    torch.set_num_threads(1)
    file = RESULTS / "predictions.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    for name in asked.models.split(","):
        model = Path(name).name
        with opened(name) as source:
            counts = [int(word) for word in asked.sequences.split(",")]
            found = rows_of(source, model, counts, asked.measured, asked.labels.split(","))
        rows = [row for row in rows if row["model"] != model] + found
        file.write_text(json.dumps({"calibration": CALIBRATION.name, "window": 512, "rows": rows}, indent=1) + "\n")
        (RESULTS / "predictions.md").write_text(report(rows))


if __name__ == "__main__":
    main()
