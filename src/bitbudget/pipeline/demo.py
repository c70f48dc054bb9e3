"""The whole story on the packaged model: one budget in, one verified checkpoint out, beside what one width for all layers gives."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bitbudget.data import DEMO_NAME
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.api import open_source, quantize
from bitbudget.pipeline.budgets import Budget
from bitbudget.pipeline.by_budget import Options
from bitbudget.pipeline.output import OutputPlan, uniform_plan
from bitbudget.pipeline.progress import Progress, Silent
from bitbudget.storage import Choice

DEMO_BUDGET = 2_500_000  # bytes; the original has 11.5 million
DEMO_CHOICES = tuple(f"int{bits}:g128" for bits in (4, 3, 2))


@dataclass(frozen=True)
class DemoRow:
    """One checkpoint. measurement: as in its bitbudget.json; forecast_bytes: known before anything was written, of a plan its
    budget.
    """

    choice: str
    folder: Path
    stored_bits: float
    forecast_bytes: int
    weights_bytes: int
    measurement: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        kept = ("kl", "kl_se", "perplexity", "word_perplexity", "top1")
        return {
            "choice": self.choice,
            "stored_bits": self.stored_bits,
            "forecast_bytes": self.forecast_bytes,
            "weights_bytes": self.weights_bytes,
            **{name: self.measurement[name] for name in kept},
        }


@dataclass(frozen=True)
class Demo:
    """The original and what became of it; no times or paths, so that two runs give the same. guard: as recorded with the plan,
    whose checkpoint is the last row.
    """

    original: DemoRow
    rows: tuple[DemoRow, ...]
    guard: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        measured = self.original.measurement
        return {
            "original": self.original.to_dict(),
            "rows": [row.to_dict() for row in self.rows],
            "guard": self.guard,
            "text": {name: measured[name] for name in ("tokens", "documents", "window", "stride")},
        }


def run_demo(
    output: Path,
    choices: tuple[str, ...] = DEMO_CHOICES,
    budget: int | None = DEMO_BUDGET,
    device: str = "auto",
    progress: Progress | None = None,
) -> Demo:
    """Quantize the packaged model by each choice, then within a budget in bytes, into folders below `output`, and verify them.

    Raises:
        BudgetError: the budget cannot be met.
        OutputError: a folder is in the way or cannot be written.
        VerificationError: a checkpoint does not hold what it promises.
    """
    source, told = open_source(DEMO_NAME), progress or Silent()
    guard = None
    with one_thread():
        rows = [_row(source, choice, output, device, told) for choice in choices]
        if budget is not None:
            row, guard = _budget_row(budget, output, device, told)
            rows.append(row)
    return Demo(_original(source, rows[0]), tuple(rows), guard)


def _budget_row(budget: int, output: Path, device: str, progress: Progress) -> tuple[DemoRow, dict[str, Any]]:
    """The checkpoint of the plan for a budget. Measured afresh: nothing of an earlier run is used."""
    name = f"{budget:,} bytes"
    with TemporaryDirectory(prefix="bitbudget-demo-cache-") as cache:
        options = Options(effort="fast", cache=Path(cache))
        folder = output / f"{budget}-bytes"
        told = _Named(progress, name)
        record = quantize(DEMO_NAME, Budget(weights=budget), folder, options=options, device=device, progress=told)
    made = record["output"]
    assert made["weights_bytes"] <= budget, "verification checks this too"
    measured = record["verification"]["measurement"]
    return DemoRow(name, folder, made["stored_bits"], budget, made["weights_bytes"], measured), record["guard"]


def _row(source: SourceModel, choice: str, output: Path, device: str, progress: Progress) -> DemoRow:
    plan = uniform_plan(source, Choice.parse(choice))
    folder = output / choice.replace(":", "-")
    record = quantize(DEMO_NAME, choice, folder, device=device, progress=_Named(progress, choice))
    written = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert written == plan.disk_bytes, "verification compares these too"
    measurement = record["verification"]["measurement"]
    return DemoRow(choice, folder, plan.stored_bits, plan.weights_bytes, record["output"]["weights_bytes"], measurement)


def _original(source: SourceModel, row: DemoRow) -> DemoRow:
    """The original measured by the same text: its numbers stand in every other row's measurement."""
    plan: OutputPlan = uniform_plan(source, Choice.parse("bf16"))
    measurement = row.measurement | {
        "kl": 0.0,
        "kl_se": 0.0,
        "top1": 1.0,
        "perplexity": row.measurement["reference_perplexity"],
        "word_perplexity": row.measurement["reference_word_perplexity"],
    }
    kept = f"{str(source.layers[0].dtype).removeprefix('torch.')} (original)"
    return DemoRow(kept, source.folder, plan.stored_bits, plan.weights_bytes, plan.weights_bytes, measurement)


@dataclass(frozen=True)
class _Named:
    """Puts the choice before the name of each stage."""

    progress: Progress
    choice: str

    def start(self, stage: str, total: int) -> None:
        self.progress.start(f"{self.choice}: {stage}", total)

    def advance(self, amount: int) -> None:
        self.progress.advance(amount)

    def finish(self) -> None:
        self.progress.finish()


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread: sums of floats then do not depend on the number of cores, and small matrices gain little by more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
