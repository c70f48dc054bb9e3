"""Which estimator knows what a layer loses? Scores against the measured KL of single layers.

    python benchmarks/llm_mq/estimators.py --model demo|twin|FOLDER [--sequences 128]

Needs `results/single_layers_MODEL.json` (`single_layers.py` at int2:g128, int3:g128, int4:g128). Scores come from 16 and
from `--sequences` sequences of 512 tokens of `../shared/text/calibration.jsonl`, none of it in the measured losses' text; labels
are drawn from the model, or the text's own where the name says so. Writes `results/estimators_MODEL.json`: Spearman's rank
correlation over the blocks' linears, and median and standard deviation of log(measured / predicted) where nats are predicted.
"""

import argparse
import json
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

from opening import opened
from scipy.stats import spearmanr

from bitbudget.methods import LlmMq
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.effort import Effort
from bitbudget.pipeline.planning import Planner, Settings
from bitbudget.pipeline.progress import Run
from bitbudget.pipeline.table import Measured

HERE = Path(__file__).parent
TEXT = HERE.parents[2] / "shared" / "text" / "calibration.jsonl"
CHOICES = ("int2:g128", "int3:g128", "int4:g128")
FEW = 16
NATS = ("fisher", "whole", "by-row")  # the others rank only
SAMPLED = (*NATS, "first", "per-sample", "rows")
OF_TEXT = ("whole", "first", "per-sample", "rows")


def method(labels: str) -> LlmMq:
    """Round-to-nearest of the unchanged model, as the losses were measured."""
    return LlmMq(
        bits=(2, 3, 4), groups=(128,), outliers=("0",), range="minmax", scaling=False, tables=CHOICES, labels=labels
    )


def judged(
    planner: Planner, measured: Measured, estimator: str, count: int, truth: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """By choice: how well the estimator ranks and predicts."""
    found = measured.estimates(planner.offers, slice(0, count), estimator)
    linears = [offer.layer.name for offer in planner.offers if offer.layer.kind == "linear"]
    result = {}
    for choice in CHOICES:
        pairs = [(found[name, choice][0], truth[name][choice]["kl"]) for name in linears if (name, choice) in found]
        entry = {"spearman": round(float(spearmanr(*zip(*pairs, strict=True)).statistic), 4)}
        if estimator in NATS:
            logs = [math.log(kl / score) for score, kl in pairs]
            entry |= {
                "median_ratio": round(math.exp(statistics.median(logs)), 4),
                "log_deviation": round(statistics.stdev(logs), 4),
            }
        result[choice] = entry
    return result


def rows_of(name: str, source: SourceModel, sequences: int) -> list[dict[str, Any]]:
    """A row for every estimator, kind of labels and number of sequences."""
    runs = json.loads((HERE / "results" / f"single_layers_{name}.json").read_text())["runs"]
    truth = next(run["layers"] for run in runs if set(CHOICES) <= set(run["choices"]))
    rows = []
    for labels, estimators in (("sampled", SAMPLED), ("text", OF_TEXT)):
        with tempfile.TemporaryDirectory() as cache:
            effort = Effort("all", first=FEW, most=sequences)
            planner = Planner(source, Settings(method(labels).recipe(), effort, TEXT, Path(cache)), Run("cpu"))
            measured = planner.measured(sequences)
            for estimator in estimators:
                for count in (FEW, measured.sequences):
                    by_choice = judged(planner, measured, estimator, count, truth)
                    rows.append({"estimator": estimator, "labels": labels, "sequences": count, **by_choice})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--sequences", type=int, default=128)
    arguments = parser.parse_args()
    name = Path(arguments.model).name
    with opened(arguments.model) as source:
        rows = rows_of(name, source, arguments.sequences)
    (HERE / "results" / f"estimators_{name}.json").write_text(json.dumps({"model": name, "rows": rows}, indent=1) + "\n")
    for row in rows:
        numbers = "  ".join(" ".join(f"{value:.3f}" for value in row[choice].values()) for choice in CHOICES)
        print(f"{row['estimator']:11} {row['labels']:8} {row['sequences']:4}  {numbers}")


if __name__ == "__main__":
    main()
