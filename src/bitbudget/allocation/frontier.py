"""Every budget at once: the corners of the loss-cost curve, and the order of upgrades that leads along it."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import fsum

import numpy as np

from bitbudget.allocation.hull import steps
from bitbudget.allocation.problem import scaled_column, sorting_by_text, strictly_falling
from bitbudget.allocation.units import Point, Unit, text_key


@dataclass(frozen=True)
class Upgrade:
    """One unit's step along its hull: `cost` more of the dimension saves `loss`."""

    unit: str
    before: Point
    after: Point
    cost: int
    loss: float


@dataclass(frozen=True)
class Frontier:
    """All corners of the best plans' loss over one cost.

    start: the plan of least cost; upgrades: in the order in which they pay; after each of them the plan is the best for its
    cost, and between two corners no plan lies below their connecting line.
    costs, losses: of the start and after every upgrade.
    """

    dimension: str
    start: Mapping[str, Point]
    costs: tuple[int, ...]
    losses: tuple[float, ...]
    steps: "_Steps"

    @cached_property
    def upgrades(self) -> tuple[Upgrade, ...]:
        """Made where they are asked for: a large model has a hundred thousand."""
        return self.steps.upgrades()

    def plan(self, budget: int) -> dict[str, Point]:
        """The last corner within a budget; its start where even that is more."""
        count = max(bisect_right(self.costs, budget) - 1, 0)
        return dict(self.start) | {upgrade.unit: upgrade.after for upgrade in self.upgrades[:count]}

    def thinned(self, corners: int) -> list[tuple[int, float]]:
        """At most so many (cost, loss) corners, both ends among them."""
        places = np.unique(np.linspace(0, len(self.costs) - 1, corners).astype(int)).tolist()
        return [(self.costs[place], self.losses[place]) for place in places]


@dataclass(frozen=True)
class _Steps:
    """Hull steps as rows of all points: before and after each, the name of its unit, its cost and loss."""

    points: Sequence[Point]
    names: Sequence[str]
    before: Sequence[int]
    after: Sequence[int]
    cost: Sequence[int]
    loss: Sequence[float]

    def upgrades(self) -> tuple[Upgrade, ...]:
        rows = zip(self.names, self.before, self.after, self.cost, self.loss, strict=True)
        return tuple(
            Upgrade(name, self.points[before], self.points[after], cost, loss)
            for name, before, after, cost, loss in rows
        )


def hull_frontier(units: Sequence[Unit], losses: Sequence[Sequence[float]], dimension: str, place: int) -> Frontier:
    """The frontier of units, sorted by name, in cost `place`, for the losses of their points."""
    points = [point for unit in units for point in unit.points]
    owner = np.repeat(np.arange(len(units)), [len(unit.points) for unit in units])
    loss = np.array([value for own in losses for value in own], dtype=np.float64)
    column = scaled_column(owner, [point.cost[place] for point in points], 0)
    order = sorting_by_text(owner, column.cost[:, None], loss, lambda row: text_key(points[row]))
    order = order[strictly_falling(owner[order], loss[order])]
    first = order[np.flatnonzero(np.diff(owner[order], prepend=-1))]
    origins, targets, _ = steps(owner[order], column.cost[order], loss[order])
    before, after = order[origins], order[targets]
    cost, saved = column.cost[after] - column.cost[before], loss[before] - loss[after]
    last = first.copy()
    # Steps of a unit come in order, so that the last of several assignments is its furthest.
    for unit, row in zip(owner[after].tolist(), after.tolist(), strict=True):
        last[unit] = row
    least = sum(points[row].cost[place] for row in first.tolist())
    # Summed from the small end, so that the tail of the curve keeps its digits.
    curve = np.cumsum([fsum(loss[last].tolist()), *saved[::-1].tolist()])[::-1]
    names = [unit.name for unit in units]
    return Frontier(
        dimension=dimension,
        start={names[int(owner[row])]: points[row] for row in first},
        costs=(least, *(least + above * column.divisor for above in np.cumsum(cost).tolist())),
        losses=tuple(curve.tolist()),
        steps=_Steps(
            points=points,
            names=[names[unit] for unit in owner[after].tolist()],
            before=before.tolist(),
            after=after.tolist(),
            cost=[above * column.divisor for above in cost.tolist()],
            loss=saved.tolist(),
        ),
    )
