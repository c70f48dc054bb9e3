"""From a point's score to the loss that is minimised: certainty asked for, noise below zero, order in cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from bitbudget.allocation.units import Point, Unit


@dataclass(frozen=True)
class Objective:
    """What the solver minimises: Σ max(score, 0) + risk · se.

    risk: standard errors to add, so that a choice must be better by more than its noise.
    order: "keep" takes scores as they are, so that a costlier point with a larger score is never chosen; "raise" gives
    every point at least the loss of all points that cost no less in any dimension (s_b ← max_{b' ≥ b} s_b'), for signed
    estimators that make 2 bits look better than 4.
    """

    risk: float = 0.0
    order: Literal["keep", "raise"] = "keep"

    def losses(self, unit: Unit) -> list[float]:
        """The loss of every point of a unit."""
        risk = self.risk
        losses = [max(point.score, 0.0) + risk * point.se for point in unit.points]
        return losses if self.order == "keep" else _raised(unit.points, losses)

    def loss(self, point: Point) -> float:
        """The loss of a point for itself."""
        return max(point.score, 0.0) + self.risk * point.se

    def notes(self, units: Sequence[Unit]) -> tuple[str, ...]:
        """What a reader of the plan should know about the scores."""
        negative = sum(point.score < 0 for unit in units for point in unit.points)
        falling = [
            unit.name for unit in units if _not_monotone(unit.points, [self.loss(point) for point in unit.points])
        ]
        notes = []
        if negative:
            notes.append(f"{negative} points have a negative score; they count as 0.")
        if falling:
            treated = "raised to that" if self.order == "raise" else "kept as they are"
            notes.append(
                f"In {len(falling)} of {len(units)} units a cheaper point has a smaller loss than a costlier one "
                f"(first {min(falling)}); the losses are {treated}."
            )
        return tuple(notes)


def _raised(points: Sequence[Point], losses: Sequence[float]) -> list[float]:
    no_less = _no_less(points)
    return [max(losses[other] for other in np.flatnonzero(row).tolist()) for row in no_less]


def _not_monotone(points: Sequence[Point], losses: Sequence[float]) -> bool:
    """Whether some point loses less than another that costs no less in any dimension and more in one."""
    if len(points[0].cost) == 1:
        # By rising cost and falling loss every such pair shows between two neighbours.
        ranked = sorted((point.cost[0], -loss) for point, loss in zip(points, losses, strict=True))
        return any(one[0] < two[0] and one[1] > two[1] for one, two in pairwise(ranked))
    no_less = _no_less(points)
    loss = np.array(losses)
    return bool((no_less & ~no_less.T & (loss[:, None] < loss[None, :])).any())


def _no_less(points: Sequence[Point]) -> Bool[ndarray, "points others"]:
    """Whether the other point costs at least as much in every dimension; costs of any size."""
    result = np.ones((len(points), len(points)), dtype=bool)
    for column in zip(*(point.cost for point in points), strict=True):
        cost = np.array(column)
        result &= cost[:, None] <= cost[None, :]
    return result
