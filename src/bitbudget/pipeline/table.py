"""From p_d on the disk to the score table that the solver reads."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bitbudget.allocation import Point, ScoreTable, Unit
from bitbudget.checkpoint.scratch import read_tensors
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.budgets import DIMENSIONS
from bitbudget.pipeline.offers import Offer, costs, digits
from bitbudget.pipeline.scores import Scoring, Wave
from bitbudget.scoring import ESTIMATORS, Estimate


@dataclass(frozen=True)
class Measured:
    """p_d of all waves, and which estimator reads it."""

    scoring: Scoring
    waves: tuple[Wave, ...]
    estimator: str

    @property
    def sequences(self) -> int:
        return sum(len(wave.sequences) for wave in self.waves)

    def estimate(self, offer: Offer, chosen: slice = slice(None), estimator: str | None = None) -> Estimate:
        """Scores of an offer's stored choices, from some of the sequences (default: all)."""
        name = estimator or self.estimator
        files = [read_tensors(self.scoring.path(wave, offer.layer.name)) for wave in self.waves]
        if name == "rows":
            pieces = [file["rows"].float() * file["scale"][:, None, None] for file in files]
        else:  # these need the sums over rows only, which were kept unrounded
            pieces = [file["sums"].unsqueeze(-1) for file in files]
        tokens = [count for wave in self.waves for count in wave.tokens]
        return ESTIMATORS[name](torch.cat(pieces, dim=1)[:, chosen], tokens[chosen])

    def table(self, source: SourceModel, offers: Sequence[Offer], inputs: dict[str, str], chosen: slice = slice(None)) -> ScoreTable:
        """Units of all layers; a choice that keeps a layer as it is loses nothing."""
        width = digits(source)
        return ScoreTable(DIMENSIONS, tuple(self._unit(offer, width, chosen) for offer in offers), inputs)

    def _unit(self, offer: Offer, width: int, chosen: slice) -> Unit:
        stored = offer.stored
        scores = self.estimate(offer, chosen) if stored else Estimate(torch.empty(0), torch.empty(0))
        found = dict(zip((str(planned.choice) for planned in stored), zip(*(part.tolist() for part in scores)), strict=True))
        points = []
        for planned in offer.planned:
            score, se = found.get(str(planned.choice), (0.0, 0.0))
            points.append(Point({offer.layer.name: str(planned.choice)}, costs(planned, width), score, se))
        return Unit(offer.layer.name, tuple(points))
