"""Lower convex hulls, and the order in which upgrades along them pay: for one budget the answer but for one unit."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray

from bitbudget.allocation.problem import Problem


@dataclass(frozen=True)
class Upgrades:
    """Steps along the hulls of all units, the largest saving per cost first; before all, every unit at `start`.

    start: cheapest point of every unit; origin, target: points before and after a step; slope: loss saved per cost.
    """

    start: Int64[ndarray, "units"]
    origin: Int64[ndarray, "steps"]
    target: Int64[ndarray, "steps"]
    slope: Float64[ndarray, "steps"]


def upgrades(problem: Problem) -> Upgrades:
    """The steps of a problem with one cost dimension, without dominated points; equal slopes in the order of units."""
    cost, loss = problem.cost[:, 0], problem.objective.astype(np.float64)
    return Upgrades(problem.first, *steps(problem.unit, cost, loss))


def steps(
    unit: Int64[ndarray, "points"], cost: Int64[ndarray, "points"], loss: Float64[ndarray, "points"]
) -> tuple[Int64[ndarray, "steps"], Int64[ndarray, "steps"], Float64[ndarray, "steps"]]:
    """Origin, target and slope of all hull steps; points by unit and rising cost, losses falling within a unit."""
    rows = np.flatnonzero(on_hull(unit, cost, loss))
    unit, cost, loss = unit[rows], cost[rows], loss[rows]
    inside = np.flatnonzero(unit[1:] == unit[:-1])
    slope = (loss[inside] - loss[inside + 1]) / (cost[inside + 1] - cost[inside])
    order = np.lexsort((inside, -slope))
    inside = inside[order]
    return rows[inside], rows[inside + 1], slope[order]


def on_hull(
    unit: Int64[ndarray, "points"], cost: Int64[ndarray, "points"], loss: Float64[ndarray, "points"]
) -> Bool[ndarray, "points"]:
    """Mask of the corners of every unit's lower convex hull in (cost, loss)."""
    rows = np.arange(len(unit))
    while True:
        above = _above_chord(unit[rows], cost[rows], loss[rows])
        if not above.any():
            break
        rows = rows[~above]
    kept = np.zeros(len(unit), dtype=bool)
    kept[rows] = True
    return kept


def _above_chord(
    unit: Int64[ndarray, "rows"], cost: Int64[ndarray, "rows"], loss: Float64[ndarray, "rows"]
) -> Bool[ndarray, "rows"]:
    """Points on or above the chord of their neighbours: of no hull, even when a neighbour goes at the same time."""
    slope = np.diff(loss) / np.maximum(np.diff(cost), 1)
    result = np.zeros(len(unit), dtype=bool)
    between = (unit[2:] == unit[1:-1]) & (unit[1:-1] == unit[:-2])
    result[1:-1] = between & (slope[:-1] >= slope[1:])
    return result


def taken(problem: Problem, steps: Upgrades) -> tuple[Int64[ndarray, "units"], float]:
    """Upgrades as long as they fit: the rounded-down optimum of the linear relaxation, and its multiplier."""
    spent = np.cumsum(problem.cost[steps.target, 0] - problem.cost[steps.origin, 0])
    left = problem.limit[0] - problem.cost[steps.start, 0].sum()
    count = int(np.searchsorted(spent, left, side="right"))
    rows = steps.start.copy()
    # A unit's steps come in order, so the last assignment of a unit is its furthest.
    for target in steps.target[:count].tolist():
        rows[problem.unit[target]] = target
    return rows, float(steps.slope[count]) if count < len(steps.slope) else 0.0
