"""Moves away from the base plan that the bound leaves open: what the exact searches are made of."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from bitbudget.allocation.bound import Bound
from bitbudget.allocation.problem import Problem

Tie = Callable[[int], int]  # source of a point → what decides between plans of equal loss and costs


@dataclass(frozen=True)
class Reached:
    """rows: the best plan met, None if no better or equal one was; value: its loss, else that of the plan known before;
    bound: no plan lies below it; complete: whether all plans as good as `value` were looked at; states: most at once."""

    rows: Int64[ndarray, "units"] | None
    value: int
    bound: int
    complete: bool
    states: int


@dataclass(frozen=True)
class Moves:
    """Points that may take the place of their unit's point in the base plan, grouped by unit; units by their smallest reduced
    cost, points of a unit by theirs.

    rows: the points; base: the base plan's points of their units; above: reduced costs; cost, loss: relative to the base plan;
    starts: first move of every unit.
    """

    rows: Int64[ndarray, "moves"]
    base: Int64[ndarray, "moves"]
    above: Int64[ndarray, "moves"]
    cost: Int64[ndarray, "moves dimensions"]
    loss: Int64[ndarray, "moves"]
    starts: Int64[ndarray, "units"]

    def own(self, unit: int) -> range:
        """The moves of a unit, by its place in `starts`."""
        stop = int(self.starts[unit + 1]) if unit + 1 < len(self.starts) else len(self.rows)
        return range(int(self.starts[unit]), stop)


def open_moves(bound: Bound, gap: int, most: int | None = None) -> tuple[Moves, bool]:
    """The moves with reduced costs of at most `gap`, of the first `most` units; whether these are all."""
    problem = bound.problem
    rows = np.flatnonzero(bound.within(gap))
    rows = rows[rows != bound.base[problem.unit[rows]]]
    above = bound.reduced(rows)
    unit = problem.unit[rows]
    nearest = np.full(problem.units, np.iinfo(np.int64).max)
    np.minimum.at(nearest, unit, above)
    order = np.lexsort((above, unit, nearest[unit]))
    starts = np.flatnonzero(np.diff(unit[order], prepend=-1))
    cut = most is not None and len(starts) > most
    if cut:
        order, starts = order[: starts[most]], starts[:most]
    rows, above = rows[order], above[order]
    base = bound.base[problem.unit[rows]]
    moves = Moves(
        rows=rows,
        base=base,
        above=above,
        cost=problem.cost[rows] - problem.cost[base],
        loss=problem.objective[rows] - problem.objective[base],
        starts=starts,
    )
    return moves, not cut


def moved(problem: Problem, plan: Int64[ndarray, "units"], rows: Int64[ndarray, "moves"]) -> Int64[ndarray, "units"]:
    """A plan with some points in the place of their units' own."""
    result = plan.copy()
    result[problem.unit[rows]] = rows
    return result


def tie_of(problem: Problem, tie: Tie, rows: Int64[ndarray, "rows"]) -> int:
    """What decides between plans of equal loss and costs, summed over some points."""
    return sum(tie(source) for source in problem.source[rows].tolist())


def first_of(
    problem: Problem, tie: Tie, one: Int64[ndarray, "units"], other: Int64[ndarray, "units"]
) -> Int64[ndarray, "units"]:
    """The better of two plans: of less loss, among equal ones of less costs, then the one that `tie` puts first."""

    if (one == other).all():
        return one

    def costs(plan: Int64[ndarray, "units"]) -> list[int]:
        return [problem.value(plan), *problem.cost[plan].sum(axis=0).tolist()]

    ours, theirs = costs(one), costs(other)
    if ours == theirs:  # hashes take longer than the rest
        ours, theirs = ([tie_of(problem, tie, plan)] for plan in (one, other))
    return one if ours <= theirs else other
