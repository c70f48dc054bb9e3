"""From units, points and budgets to a problem in integers, and back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from math import fsum

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from bitbudget.allocation.multipliers import Relaxed, relax
from bitbudget.allocation.problem import Column, Problem, quantum_for, scaled_column, sorted_problem, sorting_by_text
from bitbudget.allocation.search import greedy
from bitbudget.allocation.units import Point, Unit, text_key

TIE_BYTES = 5  # of a hash: sums over a million units stay below 2^61
ENOUGH = 4.0  # losses are counted finely enough when the largest is at most this many times a plan's total


@dataclass(frozen=True)
class Model:
    """units: by name; points, losses: of all units in a row; problem: in integers.

    objective_unit: what one of the problem's objective is worth; cost_units: the same of every cost. relaxed: the
    problem's relaxation where it was already solved.
    """

    units: tuple[Unit, ...]
    points: tuple[Point, ...]
    owner: Int64[ndarray, "points"]
    losses: Float64[ndarray, "points"]
    problem: Problem
    objective_unit: float
    cost_units: tuple[float, ...]
    relaxed: Relaxed | None = None

    def tie(self, source: int) -> int:
        """What decides between plans of equal loss and costs: the least sum of hashes of unit names and choices, so that
        neither the order of the input nor other units matter."""
        name = self.units[int(self.owner[source])].name
        digest = sha256(f"{name}\0{self.points[source].label}".encode()).digest()
        return int.from_bytes(digest[:TIE_BYTES], "big")

    def chosen(self, rows: Int64[ndarray, "units"]) -> dict[str, Point]:
        """The points of a plan by their unit's name."""
        sources = self.problem.source[rows].tolist()
        return {unit.name: self.points[source] for unit, source in zip(self.units, sources, strict=True)}

    def loss(self, rows: Int64[ndarray, "units"]) -> float:
        """Total loss of a plan, rounded once."""
        return fsum(self.losses[self.problem.source[rows]].tolist())

    def rows_of(self, plan: Mapping[str, Point]) -> Int64[ndarray, "units"]:
        """A caller's plan; a point that the problem leaves out is replaced by one at least as good, else the cheapest."""
        place = {id(point): index for index, point in enumerate(self.points)}
        sources = [place.get(id(plan[unit.name]), -1) if unit.name in plan else -1 for unit in self.units]
        cheap = self.problem.first.copy()
        for number, source in enumerate(sources):
            if source >= 0:
                cheap[number] = self._row_for(number, source)
        return cheap

    def _row_for(self, number: int, source: int) -> int:
        start = int(self.problem.first[number])
        stop = int(self.problem.first[number + 1]) if number + 1 < self.problem.units else len(self.problem.unit)
        rows = np.arange(start, stop)
        own = [self.points[index].cost for index in self.problem.source[rows].tolist()]
        wanted = self.points[source].cost
        below = [all(one <= two for one, two in zip(cost, wanted, strict=True)) for cost in own]
        inside = rows[np.array(below, dtype=bool)]
        return int(inside[np.argmin(self.problem.objective[inside])]) if len(inside) else start


def least_loss_model(
    units: Sequence[Unit], losses: Sequence[Sequence[float]], places: Sequence[int], limits: Sequence[int]
) -> Model:
    """The problem of least loss with costs `places` limited; units sorted by name, losses ≥ 0 of their points."""
    owner, points, flat = _flat(units, losses)
    columns = _columns(owner, points, places, limits)
    largest = float(flat.max())
    while True:
        built = _with_losses(_Parts(tuple(units), points, owner, flat, columns), largest)
        relaxed = relax(built.problem)
        plan = greedy(built.problem, relaxed.plans[-1:])
        total = None if plan is None else built.loss(plan)
        if total is None or total * ENOUGH >= largest:
            return replace(built, relaxed=relaxed)
        largest = total  # no point with more loss belongs to a better plan, so that losses can be counted more finely


@dataclass(frozen=True)
class _Parts:
    units: tuple[Unit, ...]
    points: tuple[Point, ...]
    owner: Int64[ndarray, "points"]
    losses: Float64[ndarray, "points"]
    columns: tuple[Column, ...]


def _with_losses(parts: _Parts, largest: float) -> Model:
    """Losses above `largest` left out, the others in the finest quantum that totals allow."""
    quantum = quantum_for(len(parts.units), largest)
    rows = np.flatnonzero(parts.losses <= largest * (1 + 2.0**-40))
    objective = np.rint(parts.losses[rows] / quantum).astype(np.int64)
    return _model(parts, rows, objective, quantum)


def _model(parts: _Parts, rows: Int64[ndarray, "rows"], objective: Int64[ndarray, "rows"], unit: float) -> Model:
    columns = parts.columns
    cost = (
        np.stack([column.cost[rows] for column in columns], axis=1) if columns else np.zeros((len(rows), 0), np.int64)
    )
    limit = np.array([column.limit for column in columns], dtype=np.int64)
    problem = Problem(parts.owner[rows], objective, cost, limit, rows)
    order = sorting_by_text(problem.unit, cost, objective, lambda row: text_key(parts.points[rows[row]]))
    problem = sorted_problem(problem.subset(order))
    cost_units = tuple(float(column.divisor) for column in columns)
    return Model(parts.units, parts.points, parts.owner, parts.losses, problem, unit, cost_units)


def _flat(
    units: Sequence[Unit], losses: Sequence[Sequence[float]]
) -> tuple[Int64[ndarray, "points"], tuple[Point, ...], Float64[ndarray, "points"]]:
    owner = np.repeat(np.arange(len(units)), [len(unit.points) for unit in units])
    points = tuple(point for unit in units for point in unit.points)
    return owner, points, np.array([loss for own in losses for loss in own], dtype=np.float64)


def _columns(
    owner: Int64[ndarray, "points"], points: Sequence[Point], places: Sequence[int], limits: Sequence[int]
) -> tuple[Column, ...]:
    return tuple(
        scaled_column(owner, [point.cost[place] for point in points], limit)
        for place, limit in zip(places, limits, strict=True)
    )


def least_cost_model(
    units: Sequence[Unit],
    losses: Sequence[Sequence[float]],
    place: int,
    loss: float,
    limited: Mapping[int, int],
) -> Model | None:
    """The problem of least cost in dimension `place` within a loss and within limits of other dimensions; None where
    some unit has no point that loses as little.

    The loss is the first cost of the problem.
    """
    owner, points, flat = _flat(units, losses)
    others = [other for other in limited if other != place]
    columns = _columns(owner, points, others, [limited[other] for other in others])
    target = scaled_column(owner, [point.cost[place] for point in points], 0)
    quantum = quantum_for(len(units), loss)
    rows = np.flatnonzero(flat <= loss)
    if len(np.unique(owner[rows])) < len(units):
        return None
    multiples = np.zeros(len(flat), dtype=np.int64)
    multiples[rows] = np.rint(flat[rows] / quantum).astype(np.int64)
    # Half a unit for every rounded loss, so that rounding forbids no plan that meets the limit.
    ceiling = int(loss / quantum) + len(units) // 2
    lost = scaled_column(owner[rows], multiples[rows].tolist(), ceiling)
    column = np.zeros(len(flat), dtype=np.int64)
    column[rows] = lost.cost
    if lost.limit < 0:
        return None
    parts = _Parts(tuple(units), points, owner, flat, (replace(lost, cost=column), *columns))
    built = _model(parts, rows, target.cost[rows], float(target.divisor))
    return replace(built, cost_units=(quantum * lost.divisor, *built.cost_units[1:]))
