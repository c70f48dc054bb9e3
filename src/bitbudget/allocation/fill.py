"""Greedy moves of one unit at a time: into the limits, then to use what is left."""

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from bitbudget.allocation.problem import Problem


def repaired(problem: Problem, rows: Int64[ndarray, "units"]) -> Int64[ndarray, "units"] | None:
    """A plan within the limits, by moves that shed the most excess for the least loss; None where moves of one unit
    do not lead there."""
    rows = rows.copy()
    scale = np.maximum(problem.limit, 1).astype(np.float64)
    for _ in range(4 * problem.units):
        over = problem.cost[rows].sum(axis=0) - problem.limit
        excess = float((np.maximum(over, 0) / scale).sum())
        if excess == 0.0:
            return rows
        moved = over + problem.cost - problem.cost[rows][problem.unit]
        shed = excess - (np.maximum(moved, 0) / scale).sum(axis=1)
        price = (problem.objective - problem.objective[rows][problem.unit]) / np.where(shed > 0, shed, 1.0)
        best = _least(np.where(shed > 1e-12 * excess, price, np.inf))
        if best is None:
            return None
        rows[problem.unit[best]] = best
    return None


def filled(problem: Problem, rows: Int64[ndarray, "units"]) -> Int64[ndarray, "units"]:
    """A plan within the limits after the largest savings that still fit, one after the other, until none fits."""
    rows = rows.copy()
    while True:
        left = problem.limit - problem.cost[rows].sum(axis=0)
        current = rows[problem.unit]
        fits = (problem.cost - problem.cost[current] <= left).all(axis=1)
        change = problem.objective - problem.objective[current]
        best = _least(np.where(fits & (change < 0), change.astype(np.float64), np.inf))
        if best is None:
            return rows
        rows[problem.unit[best]] = best


def _least(value: Float64[ndarray, "points"]) -> int | None:
    """The first point of least value, None where all are infinite."""
    best = int(np.argmin(value))
    return best if np.isfinite(value[best]) else None
