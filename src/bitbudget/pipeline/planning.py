"""Measure what a plan needs and is not measured yet. Everything that was measured stays in the work folder, so another budget only
solves.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bitbudget.calibration.split import split
from bitbudget.calibration.tokenizer import Tokenizer
from bitbudget.calibration.tokens import TokenSequence
from bitbudget.calibration.tokens import fingerprint as tokens_fingerprint
from bitbudget.methods import Recipe
from bitbudget.models.devices import compute_dtype, resolve_device
from bitbudget.models.source import SourceModel
from bitbudget.models.stream import BlockStream, CheckpointWeights
from bitbudget.pipeline.calibrate import Calibration, HiddenStates, calibrate, forward_wave, is_calibrated, read_fold
from bitbudget.pipeline.effort import SCRATCH_BYTES, WINDOW, Effort
from bitbudget.pipeline.offers import offers
from bitbudget.pipeline.progress import Run
from bitbudget.pipeline.scores import Scoring, Wave
from bitbudget.pipeline.table import Measured
from bitbudget.pipeline.texts import Cut, open_text, sample
from bitbudget.pipeline.versions import versions
from bitbudget.pipeline.waves import sequence_bytes, wave_sequences
from bitbudget.pipeline.work import Work, cache_folder, fingerprint, source_hashes, source_identity
from bitbudget.transforms.awq import Awq
from bitbudget.transforms.fold import FoldedWeights


@dataclass(frozen=True)
class Settings:
    """How to plan, apart from the budget. cache: folder of measurements; scratch_bytes: what hidden states may take on the disk."""

    recipe: Recipe
    effort: Effort
    text: Path | None = None
    cache: Path | None = None
    scratch_bytes: int = SCRATCH_BYTES


class Planner:
    """One model and one way to measure it; plans for any number of budgets."""

    def __init__(self, source: SourceModel, settings: Settings, run: Run) -> None:
        self.source = source
        self.settings = settings
        self.run = run
        self.offers = offers(source, settings.recipe)
        self.tokenizer = Tokenizer.open(source.folder, run.trust_remote_code)
        self.text = open_text(settings.text, self.tokenizer)
        self.parts = split(self.text)
        self.device = resolve_device(run.device)
        self.dtype = compute_dtype(self.device, source.config)

    @cached_property
    def sequences(self) -> tuple[TokenSequence, ...]:
        """Calibration sequences, as many as could be needed; the first of each document first."""
        effort = self.settings.effort
        found = sample(
            self.text, self.parts.calibration, self.tokenizer, self.source, Cut(WINDOW, tokens=effort.most * WINDOW)
        )
        return found.sequences[: effort.most]

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """All that calibration depends on."""
        effort, recipe = self.settings.effort, self.settings.recipe
        return {
            "source": source_identity(self.source),
            "sequences": tokens_fingerprint(self.sequences[: self._first]),
            "scaling": [recipe.reference, effort.scaling_tokens, effort.scaling_grid] if recipe.scaling else [],
            "compute": [self.device.type, str(self.dtype)],
            "versions": versions(),
        }

    @cached_property
    def work(self) -> Work:
        return Work.open(self.settings.cache or cache_folder(), self.inputs)

    @property
    def awq(self) -> Awq:
        """The search of scales at this effort."""
        return Awq(grid=self.settings.effort.scaling_grid, tokens=self.settings.effort.scaling_tokens)

    @property
    def _first(self) -> int:
        """Sequences of the first wave, within what the scratch limit allows."""
        return min(self.settings.effort.first, self._wave_sequences, len(self.sequences))

    @property
    def _wave_sequences(self) -> int:
        return wave_sequences(self.source, self.settings.scratch_bytes, self.dtype)

    @cached_property
    def score_folder(self) -> str:
        """Scores of other choices or labels do not mix."""
        recipe = self.settings.recipe
        wanted = {offer.layer.name: [str(planned.choice) for planned in offer.stored] for offer in self.offers}
        return f"{recipe.labels}-{fingerprint(wanted)[:12]}"

    def stream(self) -> BlockStream:
        """Of the original."""
        return BlockStream(self.source, CheckpointWeights(self.source.checkpoint), self.device, self.dtype)

    def measured(self, count: int) -> Measured:
        """Scores from the first `count` sequences; what is missing is measured."""
        with self.work.held():
            calibration = self._calibration()
            weights = FoldedWeights(CheckpointWeights(self.source.checkpoint), calibration.fold)
            folded = BlockStream(self.source, weights, self.device, self.dtype)
            scoring = Scoring(folded, calibration, self.offers, self.settings.recipe.labels, self.score_folder)
            waves = tuple(self._waves(count))
            for wave in waves:
                self._score(wave, scoring)
        return Measured(scoring, waves, self.settings.recipe.estimator)

    def _waves(self, count: int) -> list[Wave]:
        """0 … first, then each as long as all before it, cut by the scratch limit."""
        found, start, size = [], 0, self._first
        while start < min(count, len(self.sequences)):
            stop = min(start + size, count, len(self.sequences))
            found.append(Wave(self.sequences[start:stop], start))
            start, size = stop, min(stop, self._wave_sequences)
        return found

    def _hidden(self, wave: Wave) -> HiddenStates:
        return HiddenStates(self.work.path("hidden", wave.folder), [len(own.ids) for own in wave.sequences])

    def _calibration(self) -> Calibration:
        if is_calibrated(self.work, self.source.block_count):
            return Calibration(self.work, read_fold(self.source, self.work))
        wave = self._waves(self._first)[0]
        settings = self.settings.recipe, self.awq
        self._require_space(wave)
        return calibrate(self.stream(), wave.sequences, self._hidden(wave), settings, self.work, self.run.progress)

    def _score(self, wave: Wave, scoring: Scoring) -> None:
        if not scoring.finished(wave):
            hidden = self._hidden(wave)
            self._require_space(wave)
            if not hidden.complete(self.source.block_count):
                forward_wave(self.stream(), wave.sequences, hidden, self.run.progress, f"forward, sequences {wave.name}")
            scoring.run(wave, hidden, self.run.progress)
            scoring.finish(wave)
        # A run that was killed behind its mark has left them.
        scoring.forget(wave)
        self.work.remove("hidden", wave.folder)

    def _require_space(self, wave: Wave) -> None:
        """For what is still to be written of the hidden states and gradients of a wave."""
        folders = self.work.path("hidden", wave.folder), self.work.path("gradients", self.score_folder, wave.folder)
        held = sum(path.stat().st_size for folder in folders for path in folder.glob("*"))
        needed = len(wave.sequences) * sequence_bytes(self.source, self.dtype) - held
        self.work.require_space(needed, f"Hidden states and gradients of {len(wave.sequences)} sequences")

    def hashes(self) -> dict[str, str]:
        """What a plan depends on, by hash. The weights by their headers; the checkpoint's record has the hash of every tensor."""
        return {**source_hashes(self.source), "text": self.text.sha256}

    def calibration(self) -> Calibration:
        """What was measured once; measured now if it is missing."""
        with self.work.held():
            found = self._calibration()
            # Nothing is scored from here; a run that scores and finds them gone makes them again.
            self.work.remove("hidden")
            return found
