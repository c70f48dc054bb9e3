"""What plans really lose, over the bits: round to nearest, AWQ, the paper's LLM-MQ and ours, on text that nothing was made with.

    python benchmarks/llm_mq/curves.py --model demo [--cache FOLDER]

Calibrated and scored on 128 sequences of 512 tokens of the packaged text; measured on 16 sequences of 512 tokens of passages
that it does not hold (`texts.py`), all candidates side by side. At code bits embedding and head stay at 16 bits, as papers count.
`ours, guarded` is what the guard would take of the plan with scales, the same without, and the uniform plans of no more bytes,
by KL on the acceptance part of the packaged text. Writes `results/curves_MODEL.json` and `.md`.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from opening import described, opened
from single_layers import RESULTS
from texts import unused_documents, windows

from bitbudget.calibration.tokens import TokenSequence, fingerprint
from bitbudget.methods import LlmMq
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.budgets import Budget, passthrough_bytes
from bitbudget.pipeline.calibrate import rescaled
from bitbudget.pipeline.decide import decide, measure
from bitbudget.pipeline.effort import WINDOW, Effort
from bitbudget.pipeline.guard import Candidate, by_document
from bitbudget.pipeline.measure import Sums, ratio_error
from bitbudget.pipeline.offers import chosen
from bitbudget.pipeline.output import DEFAULT_SHARD_BYTES, PlannedLayer, plan_layer
from bitbudget.pipeline.planning import Planner, Settings
from bitbudget.pipeline.prepare import Preparation
from bitbudget.pipeline.progress import Run, Silent
from bitbudget.pipeline.solving import offered, question
from bitbudget.pipeline.texts import Cut, sample
from bitbudget.storage import Choice
from bitbudget.transforms.awq import Awq
from bitbudget.transforms.fold import Fold

SEQUENCES = 128  # of calibration and scores
MEASURED = 16
AWQ_TOKENS, AGAIN_TOKENS, GUARD_TOKENS = 4096, 1024, 2048  # AWQ at the reference choice, and at others
CHUNK = 10  # candidates measured side by side
APART = 1_000_000  # added to the numbers of the acceptance text's documents
CODE_BITS = tuple(round(4.0 - step / 5, 1) for step in range(11))
UNSCALED, AGAIN = (4.0, 3.4, 3.0, 2.4, 2.0), (4.0, 3.0, 2.0)  # points at which other scales are compared
OURS = LlmMq(bits=(2, 3, 4), groups=(128,), outliers=("0", "0.5%"), tables=())
UNIFORM = ("int4:g128", "int3:g128", "int2:g128")
OTHERS = ("int2:g64", "int2:g32", "int2:g128+outliers:0.5%")
BUDGETS = ("int4:g128", "int3:g128", "int2:g128+outliers:0.5%")


@dataclass(frozen=True)
class Row:
    """A candidate with its place in the tables. bits: what it was asked for; extra: what else is said of it."""

    curve: str
    bits: float | str
    candidate: Candidate
    extra: dict[str, Any] = field(default_factory=dict)


def row(
    curve: str, bits: float | str, layers: Sequence[PlannedLayer], preparation: Preparation, predicted: float | None
) -> Row:
    return Row(curve, bits, Candidate(f"{curve}, {bits}", tuple(layers), preparation, predicted))


def linears_by(source: SourceModel, text: str) -> tuple[PlannedLayer, ...]:
    """All linears of the blocks by one choice, embedding and head as they are."""
    choice = Choice.parse(text)
    return tuple(plan_layer(layer, choice if layer.kind == "linear" else None) for layer in source.layers)


def sizes(candidate: Candidate) -> dict[str, Any]:
    """code_bits and stored_bits: of the blocks' linears; bytes: of all layers."""
    linears = [planned for planned in candidate.layers if planned.layer.kind == "linear"]
    weights = sum(math.prod(planned.layer.shape) for planned in linears)
    codes = sum(
        planned.choice.nominal_bits(planned.layer.shape) * math.prod(planned.layer.shape) for planned in linears
    )
    stored = 8 * sum(planned.nbytes for planned in linears) / weights
    return {"code_bits": round(codes / weights, 4), "stored_bits": round(stored, 4), "bytes": candidate.nbytes}


def planner_of(
    source: SourceModel, method: LlmMq, cache: Path, sequences: int = SEQUENCES, awq_tokens: int = AWQ_TOKENS
) -> Planner:
    effort = Effort(
        "tables", sequences, sequences, scaling_tokens=awq_tokens, guard_tokens=GUARD_TOKENS, again=True
    )
    return Planner(source, Settings(method.recipe(), effort, None, cache), Run())


def told(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def uniform_rows(planner: Planner) -> Iterator[Row]:
    """Round to nearest and AWQ. Its scales are searched with minimum and maximum, ranges afterwards, as AWQ does."""
    calibration = planner.calibration()
    for text in (*UNIFORM, *OTHERS):
        plain, clip = linears_by(planner.source, text), linears_by(planner.source, clipping(text))
        fold = rescaled(planner.stream(), planner.sequences, Awq(tokens=AGAIN_TOKENS), plain, Silent())
        yield row("AWQ, scale and clip", text, clip, Preparation(calibration, fold), None)
        if text in UNIFORM:
            yield row("RTN", text, plain, Preparation(), None)
            yield row("RTN, clip", text, clip, Preparation(calibration), None)
            yield row("AWQ, scale", text, plain, Preparation(calibration, fold), None)


def clipping(text: str) -> str:
    dense, *outliers = text.split("+")
    return "+".join([f"{dense}:range=clip", *outliers])


def curve_rows(planner: Planner, curve: str, points: Sequence[float], others: bool) -> Iterator[Row]:
    """One solved plan a point, with the scales that scores were made with. others: at some points without scales too, and with
    scales searched once more at its widths.
    """
    calibration = planner.calibration()
    for bits in points:
        budget = Budget(code_bits=bits)
        every = offered(planner.offers, budget)
        asked = question(planner.source, budget, 0, DEFAULT_SHARD_BYTES, planner.settings.recipe.order)
        _, _, plan = measure(planner, asked, every)
        layers = chosen(planner.offers, plan.layers)
        told(f"{curve} {bits}")
        yield row(curve, bits, layers, Preparation(calibration, calibration.fold), plan.loss)
        if others and bits in UNSCALED:
            yield row(f"{curve}, without scales", bits, layers, Preparation(calibration, Fold.none()), None)
        if others and bits in AGAIN:
            fold = rescaled(planner.stream(), planner.sequences, Awq(tokens=AGAIN_TOKENS), layers, Silent())
            yield row(f"{curve}, scales again", bits, layers, Preparation(calibration, fold), None)


def default_rows(planner: Planner) -> Iterator[Row]:
    """The whole method at the bytes of uniform plans with embedding and head at 16 bits."""
    source = planner.source
    for text in BUDGETS:
        nbytes = sum(planned.nbytes for planned in linears_by(source, text))
        asked = question(source, Budget(weights=nbytes + passthrough_bytes(source)), 0, DEFAULT_SHARD_BYTES)
        decided = decide(planner, asked)
        found = row("llm-mq", f"bytes of {text}", decided.layers, decided.preparation, decided.plan.loss)
        counts: dict[str, int] = {}
        for planned in decided.layers:
            counts[str(planned.choice)] = counts.get(str(planned.choice), 0) + 1
        yield replace(found, extra={"guard": decided.guard, "choices": dict(sorted(counts.items()))})
        told(f"decided {text}")


def texts(planner: Planner, measured: int) -> tuple[tuple[TokenSequence, ...], tuple[TokenSequence, ...]]:
    """(unused text, acceptance text), with document numbers that differ."""
    unused = windows(unused_documents(), planner.tokenizer, measured, WINDOW)
    cut = Cut(WINDOW, tokens=GUARD_TOKENS)
    found = sample(planner.text, planner.parts.acceptance, planner.tokenizer, planner.source, cut).sequences
    return unused, tuple(replace(one, document=one.document + APART) for one in found)


Documents = Mapping[int, Sums]


def part(documents: Documents, accepting: bool) -> dict[int, Sums]:
    return {number: sums for number, sums in documents.items() if (number >= APART) == accepting}


def kl(documents: Documents) -> float:
    return sum(one.kl for one in documents.values()) / sum(one.tokens for one in documents.values())


def difference(one: Documents, other: Documents) -> tuple[float, float]:
    """KL of one minus that of the other, with its paired standard error over documents."""
    apart = [sums.kl - other[number].kl for number, sums in one.items()]
    tokens = [sums.tokens for sums in one.values()]
    error = ratio_error(apart, tokens)
    return sum(apart) / sum(tokens), math.nan if error is None else error


def entry(one: Row, documents: Documents) -> dict[str, Any]:
    """A row as results keep it."""
    own = part(documents, False)
    values, tokens = [sums.kl for sums in own.values()], [sums.tokens for sums in own.values()]
    losses = sum(sums.loss for sums in own.values()) / sum(tokens)
    return {
        "curve": one.curve,
        "bits": one.bits,
        **sizes(one.candidate),
        "predicted": one.candidate.predicted,
        "kl": kl(own),
        "kl_se": ratio_error(values, tokens),
        "perplexity": math.exp(min(losses, 700.0)),
        "acceptance_kl": kl(part(documents, True)) if any(number >= APART for number in documents) else None,
        "documents": {
            str(number): [round(sums.kl, 6), sums.tokens, round(sums.loss, 6)] for number, sums in documents.items()
        },
        **one.extra,
    }


def measured_rows(planner: Planner, rows: Sequence[Row], measured: int) -> Iterator[dict[str, Any]]:
    """Every row with its losses."""
    unused, acceptance = texts(planner, measured)
    for start in range(0, len(rows), CHUNK):
        few = rows[start : start + CHUNK]
        candidates = [one.candidate for one in few]
        found = by_document(
            planner.source, candidates, (*unused, *acceptance), (planner.device, planner.dtype), Silent()
        )
        told(f"measured {start + len(few)} of {len(rows)}")
        for one in few:
            yield entry(one, found[one.candidate.name])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="demo", help="demo, twin, or a folder")
    options.add_argument("--name", help="what the results call the model; by default the folder's name")
    options.add_argument("--cache", type=Path, help="keeps what was measured")
    options.add_argument("--sequences", type=int, default=SEQUENCES, help="of calibration and scores")
    options.add_argument("--measured", type=int, default=MEASURED, help="sequences measured on")
    options.add_argument("--every", type=int, default=1, help="take each n-th point of the curves only")
    options.add_argument("--awq-tokens", type=int, default=AWQ_TOKENS, help="of the first scales")
    options.add_argument("--threads", type=int, default=1)
    asked = options.parse_args()
    torch.set_num_threads(asked.threads)
    file = RESULTS / f"curves_{asked.name or Path(asked.model).name}.json"
    with TemporaryDirectory() as folder, opened(asked.model) as source:
        cache = asked.cache or Path(folder)
        planner, paper, default = (
            planner_of(source, method, cache, asked.sequences, asked.awq_tokens) for method in (OURS, LlmMq.paper(), LlmMq())
        )
        points = CODE_BITS[:: asked.every]
        unused, acceptance = texts(planner, asked.measured)
        record: dict[str, Any] = {
            "model": described(source),
            "calibration": {
                "sequences": len(planner.sequences),
                "window": WINDOW,
                "awq_tokens": [asked.awq_tokens, AGAIN_TOKENS],
            },
            "measured": {"scored": sum(one.scored for one in unused), "sequences_sha256": fingerprint(unused)},
            "acceptance": {"scored": sum(one.scored for one in acceptance)},
            "torch": torch.__version__,
            "rows": [],
        }
        parts = (
            lambda: curve_rows(planner, "ours", points, True),
            lambda: uniform_rows(planner),
            lambda: default_rows(default),
            lambda: curve_rows(paper, "paper", points, False),
        )
        for make in parts:
            rows = list(make())
            told(f"planned {len(rows)}")
            for found in measured_rows(planner, rows, asked.measured):
                record["rows"].append(found)
            file.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
