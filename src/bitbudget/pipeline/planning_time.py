"""Seconds that planning for a budget takes, stage by stage: the operations of each over what this machine does of them a second.

The same operations as in a run are timed for a moment, on random weights of the model's largest linear cut to one tile: searching
the parameters of all choices, contracting their errors with gradients, rounding and decoding as the search of scales does.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bitbudget.calibration.gram import GroupGram
from bitbudget.models.gradients import Factors
from bitbudget.pipeline.durations import running
from bitbudget.pipeline.effort import WINDOW
from bitbudget.pipeline.planning import Planner
from bitbudget.pipeline.probe import PROBE_WEIGHTS, Speeds, rate
from bitbudget.pipeline.scores import FACTOR_BYTES, logits_gradient
from bitbudget.pipeline.workload import Workload, weights
from bitbudget.rounding import Fitted, fit, fit_all
from bitbudget.scoring import contract
from bitbudget.storage import Choice

GROUPS = 4  # of scales in a block: before attention, its output, before the MLP, its end
INSPECTED = 1.35  # weights that a try of every group multiplies with, over those of the block: modules overlap
BACKWARD = 2  # forward passes that the gradient of a block's input takes, its own forward pass included
CANDIDATES = 4  # of the guard, besides one whose scales were searched again


@dataclass(frozen=True)
class PlanningStage:
    """A stage of planning: how long it takes at least and at most. They differ where data decide how much is measured."""

    name: str
    least_seconds: float
    most_seconds: float


@dataclass(frozen=True)
class Rates:
    """Per second: weights whose parameters are found for every choice of a linear; weights contracted with the gradients of a
    part of the sequences; weights tried with a scale; logits whose gradient is taken.
    """

    fit: float
    contract: float
    tried: float
    labels: float


class PlanningTime:
    """Sums over one model's blocks, tables and sequences. `work` is any plan of the model."""

    def __init__(self, planner: Planner, work: Workload, speeds: Speeds) -> None:
        self.planner = planner
        self.work = work
        self.speeds = speeds
        self.effort = planner.settings.effort
        self.window = min(WINDOW, max(len(sequence.ids) for sequence in planner.sequences))
        self.linears = sum(weights(planned) for block in work.blocks for planned in block)
        self.tables = sum(math.prod(offer.layer.shape) for offer in planner.offers if offer.layer.kind != "linear")
        self.choices = len(planner.settings.recipe.choices)
        self.rates = self._measured()

    def stages(self) -> tuple[PlanningStage, ...]:
        """In the order of a run."""
        most = min(self.effort.most, len(self.planner.sequences))
        least = min(self.effort.first, most)
        waves = [min(size, most) for size in _doublings(least, most)]
        guard = self._guard()
        again = self._scales(self.effort.scaling_tokens) if self.effort.again else 0.0
        calibrate = self._calibrate(waves[0])
        return (
            PlanningStage("calibrate", calibrate, calibrate),
            PlanningStage("score", self._score(waves[:1]), self._score(waves)),
            PlanningStage("guard", guard + again, guard + again),
        )

    def _forward(self, tokens: int) -> float:
        """All blocks, read from the page cache."""
        loading = self.work.source_bytes / self.speeds.cached_bytes + sum(self.work.block_weights) / self.speeds.load_weights
        return loading + running(self.work, self.speeds, tokens, self.window)

    def _calibrate(self, sequences: int) -> float:
        tokens = sequences * self.window
        columns = sum(planned.layer.shape[1] for block in self.work.blocks for planned in block)
        gram = 2 * tokens * columns * 128 / self.speeds.flops
        return self._forward(tokens) + gram + self._scales(self.effort.scaling_tokens)

    def _scales(self, tokens: int) -> float:
        """Every exponent rounds all linears once and runs the modules around them; the outputs wanted take a pass a group."""
        if not self.planner.settings.recipe.scaling:
            return 0.0
        passes = running(self.work, self.speeds, tokens, self.window)
        tries = self.effort.scaling_grid
        return GROUPS * passes + tries * (self.linears / self.rates.tried + INSPECTED * passes)

    def _score(self, waves: list[int]) -> float:
        """waves: sequences of each. Every wave but the first begins with a forward pass of its own."""
        seconds = 0.0
        for number, sequences in enumerate(waves):
            tokens = sequences * self.window
            parts = math.ceil(sequences / self._part())
            passes = running(self.work, self.speeds, tokens, self.window)
            seconds += self._forward(tokens) if number else 0.0
            seconds += self._forward(tokens) + (BACKWARD - 1) * passes
            # Tables are offered fewer choices than linears.
            share = len(self.planner.settings.recipe.tables) / self.choices
            seconds += (self.linears + share * self.tables) / self.rates.fit
            seconds += (parts * self.linears + sequences * share * self.tables / 2) / self.rates.contract
            vocabulary, hidden = self.work.table
            seconds += tokens * vocabulary * (3 * 2 * hidden / self.speeds.flops + 1 / self.rates.labels)
        return seconds

    def searching(self) -> float:
        """Finding the ranges of one choice for every linear."""
        return self.linears / (self.choices * self.rates.fit)

    def _guard(self) -> float:
        tokens, candidates = self.effort.guard_tokens, CANDIDATES + self.effort.again
        rounding = self.searching() + self.linears / self.rates.tried
        blocks = (1 + candidates) * self._forward(tokens) + candidates * rounding
        vocabulary, hidden = self.work.table
        comparing = (1 + candidates) * 2 * hidden / self.speeds.flops + candidates / self.speeds.compare_logits
        return blocks + tokens * vocabulary * comparing

    def _part(self) -> int:
        """Sequences whose inputs and gradients of a block are in memory together."""
        features = max(sum(sum(planned.layer.shape) for planned in block) for block in self.work.blocks)
        return max(1, FACTOR_BYTES // (4 * features * self.window))

    def _measured(self) -> Rates:
        """Of random weights, for rounding's speed may depend on values."""
        offer = max(self.planner.offers, key=lambda offer: math.prod(offer.layer.shape) if offer.layer.kind == "linear" else 0)
        device, generator = self.work.device, torch.Generator().manual_seed(0)
        columns = offer.layer.shape[1]
        rows = max(1, min(offer.layer.shape[0], PROBE_WEIGHTS // columns))
        weight = torch.randn(rows, columns, generator=generator).to(device)
        inputs = torch.randn(self.window, columns, generator=generator).to(device)
        choices = [planned.choice for planned in offer.stored]
        gram = GroupGram.of(inputs)
        fits: list[Fitted] = fit_all(weight, choices, gram)
        factors = [Factors(inputs, inputs[:, :1].expand(-1, rows).contiguous())] * self._part()
        reference = Choice.parse(self.planner.settings.recipe.reference)
        vocabulary = self.work.table[0]
        few = self.planner.sequences[0]
        logits = torch.randn(few.scored, vocabulary, generator=generator).to(device)
        labels, gradient = logits_gradient(self.planner.settings.recipe.labels, few, 0), torch.empty_like(logits)

        def of(operation: Callable[[], object], count: int) -> float:
            return count * rate(operation, device)

        return Rates(
            fit=of(lambda: fit_all(weight, choices, gram), weight.numel()),
            contract=of(lambda: contract(fits, factors, (rows, columns)), weight.numel()),
            tried=of(lambda: (fit(weight * 1.5, reference).decoded(weight.dtype) / 1.5).to(weight.dtype), weight.numel()),
            labels=of(lambda: labels(logits, gradient), logits.numel()),
        )


def _doublings(first: int, most: int) -> list[int]:
    """Sizes of the waves: the first, then each as long as all before it."""
    sizes, held = [first], first
    while held < most:
        sizes.append(min(held, most - held))
        held += sizes[-1]
    return sizes
