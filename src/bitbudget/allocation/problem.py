"""The solver's own form of a choice under budgets: integers in arrays, one row per point.

    min Σ_u S[p_u]   s.t.   Σ_u C[p_u, k] ≤ limit[k] for every k,   one point p_u of every unit u

Costs are the caller's integers less each unit's minimum, over their greatest common divisor. S are losses in multiples
of a power of two, coarse enough that every sum fits 63 bits and fine enough that all rounding together stays below 1e-10
of the best loss for 5,000 units, 1e-12 for 200: totals are exact, and sums that differ only by rounding are ties.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped
from numpy import ndarray

from bitbudget.allocation.dominance import undominated_rows
from bitbudget.errors import InputError

LARGEST = 2**61  # no total of costs or losses reaches it, so that sums of two still fit 63 bits


@dataclass(frozen=True)
class Problem:
    """Points sorted by unit, cost and objective; unit: the unit of every point; source: its place in the caller's list."""

    unit: Int64[ndarray, "points"]
    objective: Int64[ndarray, "points"]
    cost: Int64[ndarray, "points dimensions"]
    limit: Int64[ndarray, "dimensions"]
    source: Int64[ndarray, "points"]

    @cached_property
    def first(self) -> Int64[ndarray, "units"]:
        """First point of every unit."""
        return np.flatnonzero(np.diff(self.unit, prepend=-1))

    @property
    def units(self) -> int:
        return int(self.unit[-1]) + 1

    @property
    def dimensions(self) -> int:
        return len(self.limit)

    def subset(self, kept: Bool[ndarray, "points"] | Int64[ndarray, "rows"]) -> "Problem":
        """The same problem with fewer points, or in another order; every unit keeps at least one."""
        return replace(
            self,
            unit=self.unit[kept],
            objective=self.objective[kept],
            cost=self.cost[kept],
            source=self.source[kept],
        )

    def best_of_units(self, value: Float64[ndarray, "points"]) -> Int64[ndarray, "units"]:
        """The first point of least value in every unit."""
        least = np.minimum.reduceat(value, self.first)
        rows = np.flatnonzero(value == least[self.unit])
        return rows[np.flatnonzero(np.diff(self.unit[rows], prepend=-1))]

    def feasible(self, rows: Int64[ndarray, "units"]) -> bool:
        return bool((self.cost[rows].sum(axis=0) <= self.limit).all())

    def value(self, rows: Int64[ndarray, "units"]) -> int:
        """Total loss of a plan, in the problem's units."""
        return int(self.objective[rows].sum())


@dataclass(frozen=True)
class Column:
    """One dimension in the problem's integers: costs above each unit's minimum, what the limit leaves for them (-1 where it
    is below the sum of minima), and how many of the caller's units one of ours is."""

    cost: Int64[ndarray, "points"]
    limit: int
    divisor: int


def scaled_column(unit: Int64[ndarray, "points"], costs: Sequence[int], limit: int) -> Column:
    """Costs above their unit's minimum over their greatest common divisor; points by unit, costs of any size.

    Raises:
        InputError: they spread over more than 61 bits even so.
    """
    wide = max(costs) >= LARGEST
    amount = np.array(costs, dtype=object if wide else np.int64)
    first = np.flatnonzero(np.diff(unit, prepend=-1))
    least = np.minimum.reduceat(amount, first)
    most = np.maximum.reduceat(amount, first)
    floor = sum(least.tolist())
    spread = sum(most.tolist()) - floor
    above = amount - np.repeat(least, np.diff(first, append=len(unit)))
    divisor = int(np.gcd.reduce(above)) or 1
    if spread // divisor >= LARGEST:
        raise InputError(
            f"Costs spread over {spread:,}, more than the {LARGEST:,} that totals may span. Use a larger unit."
        )
    left = min(limit - floor, spread) // divisor
    return Column((above // divisor).astype(np.int64), max(left, -1), divisor)


def quantum_for(units: int, largest: float) -> float:
    """The smallest power of two that keeps the sum of `units` losses of at most `largest` below LARGEST."""
    if largest <= 0.0:
        return math.ldexp(1.0, -1022)
    exponent = math.frexp(largest)[1] + math.frexp(float(units))[1] - LARGEST.bit_length() + 1
    return math.ldexp(1.0, max(exponent, -1022))


def sorted_problem(problem: Problem) -> Problem:
    """Points by unit, costs, objective, and where all are equal in the order given; dominated ones left out."""
    order = sorting(problem.unit, problem.cost, problem.objective)
    arranged = problem.subset(order)
    return arranged.subset(_undominated(arranged))


def sorting(
    unit: Int64[ndarray, "points"], cost: Int64[ndarray, "points dimensions"], objective: Int64[ndarray, "points"]
) -> Int64[ndarray, "points"]:
    """The order of points in a problem; equal ones stay as they are."""
    return np.lexsort((objective, *cost.T[::-1], unit))


def sorting_by_text(
    unit: Int64[ndarray, "points"],
    cost: Int64[ndarray, "points dimensions"],
    value: Shaped[ndarray, "points"],
    text: Callable[[int], tuple[Any, ...]],
) -> Int64[ndarray, "points"]:
    """The order of points in which those of one unit that are equal in every number stand by their text; texts of others
    are not asked for, since that takes longer than everything else."""
    order = np.lexsort((value, *cost.T[::-1], unit))
    same = np.zeros(len(order), dtype=bool)
    same[1:] = np.all([column[order[1:]] == column[order[:-1]] for column in (unit, value, *cost.T)], axis=0)
    group = np.cumsum(~same)
    equal = np.flatnonzero(np.bincount(group)[group] > 1)
    by_text = sorted(equal.tolist(), key=lambda place: (group[place], *text(int(order[place]))))
    order[equal] = order[by_text]
    return order


def _undominated(problem: Problem) -> Bool[ndarray, "points"]:
    if problem.dimensions <= 1:
        return strictly_falling(problem.unit, problem.objective)
    table = np.column_stack([problem.cost, problem.objective])
    bounds = [*problem.first.tolist(), len(table)]
    return np.concatenate(
        [undominated_rows(table[start:stop]) for start, stop in zip(bounds, bounds[1:], strict=False)]
    )


def strictly_falling(unit: Int64[ndarray, "points"], value: Shaped[ndarray, "points"]) -> Bool[ndarray, "points"]:
    """Mask of the points whose value is below that of all earlier ones of their unit."""
    rank = np.unique(value, return_inverse=True)[1].astype(np.int64)
    # Later units lie below all earlier ones, so that one running minimum serves every unit.
    level = rank - unit * (len(rank) + 1)
    before = np.concatenate([[level[0] + 1], np.minimum.accumulate(level)[:-1]])
    return level < before
