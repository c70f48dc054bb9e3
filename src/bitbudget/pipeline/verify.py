"""Verify and evaluate: a finished folder is read back from the disk, checked, and compared with its original."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bitbudget.calibration.split import split
from bitbudget.calibration.tokenizer import Tokenizer
from bitbudget.checkpoint.native import NativeConfig
from bitbudget.errors import BitbudgetError
from bitbudget.models.devices import compute_dtype, resolve_device
from bitbudget.models.source import SourceModel
from bitbudget.models.stream import BlockStream, CheckpointWeights
from bitbudget.pipeline.checks import CHECKS, SHOWN, Folder, accounted
from bitbudget.pipeline.measure import Measurement, measure
from bitbudget.pipeline.progress import Run, stage
from bitbudget.pipeline.record import read_record
from bitbudget.pipeline.texts import Cut, Sample, evaluation_part, open_text, sample

VERIFY_CUT = Cut(window=256, tokens=4096)
EVALUATE_CUT = Cut(window=2048)


@dataclass
class Verification:
    """Which checks ran, what they found, and what the model measures."""

    checks: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    measurement: Measurement | None = None
    sample: Sample | None = None

    @property
    def passed(self) -> bool:
        return not self.problems

    def add(self, check: str, problems: Iterator[str]) -> None:
        """Run one check; long lists of problems are cut, with their count."""
        found = list(problems)
        self.checks.append(check)
        self.problems += found[:SHOWN]
        if len(found) > SHOWN:
            self.problems.append(f"{check}: and {len(found) - SHOWN} more")

    def to_dict(self) -> dict[str, Any]:
        entry: dict[str, Any] = {"passed": self.passed, "checks": self.checks, "problems": self.problems}
        if self.measurement and self.sample:
            entry |= {"measurement": self.measurement.to_dict(), "text": self.sample.to_dict()}
        return entry


def open_folder(path: Path, trust_remote_code: bool = False) -> Folder:
    """A folder that `quantize` finished.

    Raises:
        InputError: it is none, it is unfinished or damaged, or of a newer format.
    """
    record, config = read_record(path)
    native = NativeConfig.from_dict(config["quantization_config"])
    source = SourceModel.open(path, trust_remote_code=trust_remote_code, allow_native=True)
    return Folder(path, record, source.checkpoint, native, source)


def verify_folder(
    path: Path, original: SourceModel | None, text: Path | None, run: Run, cut: Cut = VERIFY_CUT
) -> Verification:
    """All checks, then perplexity, and with the original KL and top-1 agreement, on a part of the text that nothing was chosen by.

    A folder that cannot even be opened is a failed verification with that problem, not an error.
    """
    result = Verification()
    try:
        folder = open_folder(path, run.trust_remote_code)
    except BitbudgetError as error:
        result.add("folder readable", iter([str(error)]))
        return result
    with stage(run.progress, "check", len(CHECKS) + 1):
        for name, check in CHECKS.items():
            _run(result, name, check(folder))
            run.progress.advance(1)
        if original is not None:
            _run(result, "every source tensor accounted for", accounted(folder, original))
    if result.problems:  # a broken file is not worth running
        return result
    tokenizer = Tokenizer.open(path, run.trust_remote_code)
    words = open_text(text, tokenizer)
    # Not the acceptance part: a guard may have chosen by that.
    result.sample = sample(words, split(words).evaluation, tokenizer, folder.source, cut)
    result.measurement = measure_folder(folder, original, result.sample, run)
    _run(result, "finite KL and perplexity", _not_finite(result.measurement))
    return result


def _run(result: Verification, name: str, problems: Iterator[str]) -> None:
    try:
        result.add(name, problems)
    except BitbudgetError as error:
        result.add(name, iter([str(error)]))


def _not_finite(measurement: Measurement) -> Iterator[str]:
    for name, value in measurement.to_dict().items():
        if not torch.isfinite(torch.tensor(float(value))):
            yield f"{name} is {value}"


def measure_folder(folder: Folder, original: SourceModel | None, text: Sample, run: Run) -> Measurement:
    """Stream the stored model, and the original if given, over a sample."""
    where = resolve_device(run.device)
    stored = BlockStream(folder.source, folder.weights, where, compute_dtype(where, folder.source.config))
    reference = None
    if original is not None:
        reference = BlockStream(original, CheckpointWeights(original.checkpoint), where, stored.dtype)
    return measure(stored, reference, text.sequences, (text.window, text.stride), run.progress)


def evaluate_folder(
    path: Path, text: Path, original: SourceModel | None, run: Run, cut: Cut = EVALUATE_CUT
) -> tuple[Measurement, Sample]:
    """Perplexity, and with the original KL, on a text: the whole file, or its evaluation part if the plan was made with it."""
    folder = open_folder(path, run.trust_remote_code)
    tokenizer = Tokenizer.open(path, run.trust_remote_code)
    words = open_text(text, tokenizer)
    part = evaluation_part(words, folder.record["text"])
    chosen = sample(words, part, tokenizer, folder.source, cut)
    return measure_folder(folder, original, chosen, run), chosen
