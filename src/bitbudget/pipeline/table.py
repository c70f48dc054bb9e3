"""From p_d on the disk to the score table that the solver reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bitbudget.allocation import Point, ScoreTable, Unit
from bitbudget.checkpoint.scratch import read_tensors
from bitbudget.pipeline.budgets import DIMENSIONS
from bitbudget.pipeline.offers import Offer, Prices
from bitbudget.pipeline.scores import Scoring, Wave
from bitbudget.scoring import ESTIMATORS, Estimate, composite
from bitbudget.scoring.estimators import Contraction, PerSequence, row_squares, whole_squares

DEFAULT = "fisher"  # the composite of two estimators, over all layers together
EVERY = slice(None)


@dataclass(frozen=True)
class Measured:
    """p_d of all waves, and which estimator reads it."""

    scoring: Scoring
    waves: tuple[Wave, ...]
    estimator: str

    @property
    def sequences(self) -> int:
        return sum(len(wave.sequences) for wave in self.waves)

    @property
    def tokens(self) -> list[int]:
        """Scored tokens of every sequence."""
        return [count for wave in self.waves for count in wave.tokens]

    def estimate(self, offer: Offer, estimator: str, chosen: slice = EVERY) -> Estimate:
        """One of `ESTIMATORS` for an offer's stored choices, from some of the sequences (default: all)."""
        return ESTIMATORS[estimator](self._contraction(offer, estimator, chosen), self.tokens[chosen])

    def squares(self, offers: Sequence[Offer], chosen: slice = EVERY) -> tuple[PerSequence, PerSequence]:
        """Those of the whole layer and those by row, of all stored choices, one after the other."""
        stored = [offer for offer in offers if offer.stored]
        whole = [whole_squares(self._contraction(offer, "whole", chosen)) for offer in stored]
        by_row = [row_squares(self._contraction(offer, "by-row", chosen)) for offer in stored]
        return torch.cat(whole), torch.cat(by_row)

    def _contraction(self, offer: Offer, estimator: str, chosen: slice) -> Contraction:
        pieces = [_read(self.scoring.path(wave, offer.layer.name), estimator) for wave in self.waves]
        return torch.cat(pieces, dim=1)[:, chosen]

    def estimates(
        self, offers: Sequence[Offer], chosen: slice = EVERY, estimator: str | None = None
    ) -> dict[tuple[str, str], tuple[float, float]]:
        """(layer, choice's text) -> score and standard error, of all stored choices."""
        name = estimator or self.estimator
        keys = [(offer.layer.name, str(planned.choice)) for offer in offers for planned in offer.stored]
        if not keys:
            return {}
        if name == DEFAULT:
            found = composite(*self.squares(offers, chosen), self.tokens[chosen])
        else:
            found = self._joined(offers, name, chosen)
        return dict(zip(keys, zip(found.score.tolist(), found.se.tolist(), strict=True), strict=True))

    def _joined(self, offers: Sequence[Offer], estimator: str, chosen: slice) -> Estimate:
        each = [self.estimate(offer, estimator, chosen) for offer in offers if offer.stored]
        return Estimate(torch.cat([one.score for one in each]), torch.cat([one.se for one in each]))

    def table(
        self, prices: Prices, offers: Sequence[Offer], inputs: Mapping[str, str], chosen: slice = EVERY
    ) -> ScoreTable:
        """Units of all layers; a choice that keeps a layer as it is loses nothing."""
        found, units = self.estimates(offers, chosen), []
        for offer in offers:
            name, points = offer.layer.name, []
            for planned in offer.planned:
                text = str(planned.choice)
                score, se = found.get((name, text), (0.0, 0.0))
                points.append(Point({name: text}, prices.costs(planned), score, se))
            units.append(Unit(name, tuple(points)))
        return ScoreTable(DIMENSIONS, tuple(units), inputs)


def _read(path: Path, estimator: str) -> Contraction:
    """p as an estimator needs it: sums over rows stand for rows wherever they say as much, and were kept unrounded."""
    if estimator == "rows":
        file = read_tensors(path, ("rows", "scale"))
        return file["rows"].float() * file["scale"][:, None, None]
    if estimator == "by-row":
        return read_tensors(path, ("squares",))["squares"].sqrt().unsqueeze(-1)
    return read_tensors(path, ("sums",))["sums"].unsqueeze(-1)
