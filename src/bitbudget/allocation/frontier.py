"""Every budget at once: the corners of the loss-cost curve, and the order of upgrades that leads along it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import fsum

import numpy as np

from bitbudget.allocation.hull import steps
from bitbudget.allocation.problem import scaled_column, strictly_falling
from bitbudget.allocation.units import Point, Unit


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
    upgrades: tuple[Upgrade, ...]
    costs: tuple[int, ...]
    losses: tuple[float, ...]

    def plan(self, budget: int) -> dict[str, Point]:
        """The last corner within a budget; its start where even that is more."""
        count = max(int(np.searchsorted(np.array(self.costs), budget, side="right")) - 1, 0)
        return dict(self.start) | {upgrade.unit: upgrade.after for upgrade in self.upgrades[:count]}

    def thinned(self, corners: int) -> list[tuple[int, float]]:
        """At most so many (cost, loss) corners, both ends among them."""
        places = np.unique(np.linspace(0, len(self.costs) - 1, corners).astype(int)).tolist()
        return [(self.costs[place], self.losses[place]) for place in places]


def hull_frontier(units: Sequence[Unit], losses: Sequence[Sequence[float]], dimension: str, place: int) -> Frontier:
    """The frontier of units, sorted by name, in cost `place`, for the losses of their points."""
    points = [point for unit in units for point in unit.points]
    owner = np.repeat(np.arange(len(units)), [len(unit.points) for unit in units])
    loss = np.array([value for own in losses for value in own], dtype=np.float64)
    cost = scaled_column(owner.tolist(), [point.cost[place] for point in points], 0).cost
    order = np.array(sorted(range(len(points)), key=lambda row: (owner[row], cost[row], loss[row], points[row].label)))
    order = order[strictly_falling(owner[order], loss[order])]
    first = order[np.flatnonzero(np.diff(owner[order], prepend=-1))]
    origins, targets, _ = steps(owner[order], cost[order], loss[order])
    pairs = [(int(order[origin]), int(order[target])) for origin, target in zip(origins, targets, strict=True)]
    upgrades = tuple(
        Upgrade(
            unit=units[int(owner[after])].name,
            before=points[before],
            after=points[after],
            cost=points[after].cost[place] - points[before].cost[place],
            loss=float(loss[before] - loss[after]),
        )
        for before, after in pairs
    )
    last = dict(zip(owner[first].tolist(), first.tolist(), strict=True)) | {int(owner[row]): row for _, row in pairs}
    # Summed from the small end, so that the tail of the curve keeps its digits.
    saved = [fsum(float(loss[row]) for row in last.values()), *(upgrade.loss for upgrade in reversed(upgrades))]
    return Frontier(
        dimension=dimension,
        start={units[int(owner[row])].name: points[row] for row in first},
        upgrades=upgrades,
        costs=tuple(accumulate((up.cost for up in upgrades), initial=sum(points[row].cost[place] for row in first))),
        losses=tuple(reversed(list(accumulate(saved)))),
    )
