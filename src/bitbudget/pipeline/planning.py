"""Plan: measure what is not measured yet, solve for the budget, and let the guard judge. Everything that was measured stays in the
work folder, so another budget only solves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bitbudget.allocation import Infeasible, Plan, Point, ScoreTable, Unit, plan_from_table
from bitbudget.calibration.split import split
from bitbudget.calibration.tokenizer import Tokenizer
from bitbudget.calibration.tokens import TokenSequence
from bitbudget.calibration.tokens import fingerprint as tokens_fingerprint
from bitbudget.errors import BudgetError
from bitbudget.methods import Recipe
from bitbudget.models.devices import compute_dtype, resolve_device
from bitbudget.models.source import SourceModel
from bitbudget.models.stream import BlockStream, CheckpointWeights
from bitbudget.pipeline.budgets import DIMENSIONS, DISK, Budget, described, exceeded, limits
from bitbudget.pipeline.calibrate import Calibration, HiddenStates, calibrate, forward_wave, is_calibrated, read_fold
from bitbudget.pipeline.effort import SCRATCH_BYTES, WINDOW, Effort
from bitbudget.pipeline.least import refuse_too_small
from bitbudget.pipeline.offers import Offer, chosen, costs, digits, disk_constant, offers
from bitbudget.pipeline.output import OutputPlan, PlannedLayer, disk_bytes_of, shards_of
from bitbudget.pipeline.progress import Run
from bitbudget.pipeline.scores import Scoring, Wave
from bitbudget.pipeline.table import Measured
from bitbudget.pipeline.texts import Cut, open_text, sample
from bitbudget.pipeline.versions import versions
from bitbudget.pipeline.waves import sequence_bytes, wave_sequences
from bitbudget.pipeline.work import Work, cache_folder, fingerprint, source_hashes, source_identity
from bitbudget.transforms.awq import Awq
from bitbudget.transforms.fold import FoldedWeights

AGREEMENT = 0.02  # what a half's plan may lose more, by the other half's scores, than that half's own
DISK_ROUNDS = 12  # of moving the limit of the disk; two or three are enough nearly always


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


@dataclass(frozen=True)
class Question:
    """A budget as the solver sees it. limit: of every dimension; beside_weights: bytes that running takes besides tensors."""

    budget: Budget
    limit: dict[str, int | None]
    constant_disk: int
    beside_weights: int
    max_shard_bytes: int

    def solver_limit(self, table: ScoreTable) -> dict[str, int | None]:
        """Of a table's points. That of the disk is an estimate, so never below the least there is."""
        disk = self.limit[DISK]
        if disk is None:
            return self.limit
        place = table.dimensions.index(DISK)
        least = sum(min(point.cost[place] for point in unit.points) for unit in table.units)
        return {**self.limit, DISK: max(least, disk - self.constant_disk)}


def question(source: SourceModel, budget: Budget, beside_weights: int, max_shard_bytes: int) -> Question:
    """Raises InputError for a budget that is no number."""
    budget.check()
    limit = limits(budget, source, beside_weights)
    return Question(budget, limit, disk_constant(source, max_shard_bytes), beside_weights, max_shard_bytes)


def offered(every: Sequence[Offer], budget: Budget) -> tuple[Offer, ...]:
    """With a budget of code bits embedding and head stay at 16 bits, as papers count."""
    if budget.code_bits is None:
        return tuple(every)
    return tuple(
        offer if offer.layer.kind == "linear" else Offer(offer.layer, offer.planned[:1]) for offer in every
    )


def restricted(table: ScoreTable, every: Sequence[Offer]) -> ScoreTable:
    """Only the points that are offered."""
    allowed = {(offer.layer.name, str(planned.choice)) for offer in every for planned in offer.planned}
    units = tuple(
        replace(unit, points=tuple(point for point in unit.points if (unit.name, point.label) in allowed))
        for unit in table.units
    )
    return replace(table, units=units)


def solved(table: ScoreTable, asked: Question, source: SourceModel, every: Sequence[Offer]) -> Plan:
    """The plan of least predicted loss. What the files really take is known with the plan only (lengths of names and numbers in
    headers, an index), so a limit of the disk is moved by what was over- or underestimated until nothing changes.

    Raises:
        BudgetError: no plan fits.
    """
    limit, most = asked.solver_limit(table), asked.limit[DISK]
    if most is None:
        return _solved(table, limit, asked)
    best: Plan | None = None
    tried: set[int | None] = set()
    while limit[DISK] not in tried and len(tried) < DISK_ROUNDS:
        tried.add(limit[DISK])
        try:
            plan = _solved(table, limit, asked)
        except BudgetError:
            if best is None:
                raise
            break
        spare = most - disk_bytes_of(source, chosen(every, plan.layers), asked.max_shard_bytes)
        if spare >= 0 and (best is None or (plan.loss or 0.0) <= (best.loss or 0.0)):
            best = replace(plan, budgets={**plan.budgets, DISK: plan.costs[DISK] + spare})
        limit = {**limit, DISK: (plan.costs[DISK] if spare >= 0 else (limit[DISK] or 0)) + spare}
    if best is None:
        raise BudgetError(f"{described(asked.budget)} cannot be met: the files' headers take the last bytes. Raise it.")
    return best


def _solved(table: ScoreTable, limit: Mapping[str, int | None], asked: Question) -> Plan:
    try:
        return plan_from_table(table, limit)
    except Infeasible as error:
        raise BudgetError(f"{described(asked.budget)} cannot be met. {error}") from error


def refuse_infeasible(source: SourceModel, every: Sequence[Offer], asked: Question) -> None:
    """Before any work: raise BudgetError where no plan can meet the budget."""
    refuse_too_small(source, every, asked.budget, asked.beside_weights, asked.max_shard_bytes)
    width = digits(source)
    units = []
    for offer in every:
        name = offer.layer.name
        points = (Point({name: str(planned.choice)}, costs(planned, width), 0.0) for planned in offer.planned)
        units.append(Unit(name, tuple(points)))
    table = ScoreTable(DIMENSIONS, tuple(units), {})
    _solved(table, asked.solver_limit(table), asked)


def richest(source: SourceModel, every: Sequence[Offer], asked: Question) -> tuple[PlannedLayer, ...] | None:
    """Every layer by its largest choice, if the budget has room for that: then there is nothing to choose."""
    width = digits(source)
    layers = tuple(max(offer.planned, key=lambda planned: costs(planned, width)) for offer in every)
    sums = (sum(amounts) for amounts in zip(*(costs(planned, width) for planned in layers), strict=True))
    totals = dict(zip(DIMENSIONS, sums, strict=True))
    if asked.limit[DISK] is not None:  # files are known to the byte
        totals[DISK] = disk_bytes_of(source, layers, asked.max_shard_bytes)
    return None if exceeded(asked.limit, totals) else layers


def output_of(
    source: SourceModel, layers: Sequence[PlannedLayer], max_shard_bytes: int, settings: dict[str, Any]
) -> OutputPlan:
    """What these layers make of the model, to the byte."""
    return OutputPlan(
        tuple(layers), source.passthrough, shards_of(source, layers, max_shard_bytes), settings
    )
