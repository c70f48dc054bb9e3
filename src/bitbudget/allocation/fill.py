"""Greedy moves of one unit at a time: into the limits, then to use what is left."""

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from bitbudget.allocation.problem import Problem

WORTHWHILE = (
    1e-2,
    1e-12,
)  # shares of the excess that a move must shed: small steps are left for when no other is there


class _Moves:
    """A plan that changes, and for every point what taking it would add to the costs and the loss."""

    def __init__(self, problem: Problem, rows: Int64[ndarray, "units"]) -> None:
        self.problem = problem
        self.rows = rows.copy()
        self.total = problem.cost[rows].sum(axis=0)
        current = rows[problem.unit]
        self.extra = problem.cost - problem.cost[current]
        self.change = problem.objective - problem.objective[current]
        self.stop = np.append(problem.first[1:], len(problem.unit))

    def take(self, row: int) -> None:
        unit = int(self.problem.unit[row])
        self.total = self.total + self.extra[row]
        own = slice(int(self.problem.first[unit]), int(self.stop[unit]))
        self.extra[own] = self.extra[own] - self.extra[row]
        self.change[own] = self.change[own] - self.change[row]
        self.rows[unit] = row


def repaired(problem: Problem, rows: Int64[ndarray, "units"]) -> Int64[ndarray, "units"] | None:
    """A plan within the limits, by moves that shed the most excess for the least loss; None where moves of one unit
    do not lead there."""
    moves = _Moves(problem, rows)
    scale = np.maximum(problem.limit, 1).astype(np.float64)
    for _ in range(4 * problem.units):
        over = moves.total - problem.limit
        excess = float((np.maximum(over, 0) / scale).sum())
        if excess == 0.0:
            return moves.rows
        best = _cheapest_relief(moves, over, scale, excess)
        if best is None:
            return None
        moves.take(best)
    return None


def _cheapest_relief(
    moves: _Moves, over: Int64[ndarray, "dimensions"], scale: Float64[ndarray, "dimensions"], excess: float
) -> int | None:
    """The point that sheds excess for the least loss; None where none sheds any."""
    shed = np.full(len(moves.change), excess)
    for dimension in range(len(over)):
        shed -= np.maximum(moves.extra[:, dimension] + over[dimension], 0) / scale[dimension]
    for share in WORTHWHILE:
        sheds = np.flatnonzero(shed > share * excess)
        if len(sheds):
            return int(sheds[np.argmin(moves.change[sheds] / shed[sheds])])
    return None


def filled(problem: Problem, rows: Int64[ndarray, "units"]) -> Int64[ndarray, "units"]:
    """A plan within the limits after the largest savings that still fit, one after the other, until none fits."""
    moves = _Moves(problem, rows)
    while True:
        left = problem.limit - moves.total
        fits = moves.change < 0
        for dimension, room in enumerate(left.tolist()):
            fits &= moves.extra[:, dimension] <= room
        saves = np.flatnonzero(fits)
        if not len(saves):
            return moves.rows
        moves.take(int(saves[np.argmin(moves.change[saves])]))
