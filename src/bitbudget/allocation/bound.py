"""A lower bound in exact arithmetic, and what it forbids.

For multipliers λ ≥ 0 every plan within the limits has  Σ S ≥ Σ_u min_p (S_p + λ·C_p) − λ·limit  =: L(λ), and a plan that
takes p is at least r_p = S_p + λ·C_p − min (the reduced cost) above L(λ). The floating-point numbers below only choose λ
and sort out points that are far from mattering; L and r themselves are computed in integers without rounding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray

from bitbudget.allocation.problem import Problem

ROUNDING = 2.0**-48  # more than the relative error of a few floating-point operations


@dataclass(frozen=True)
class Bound:
    """L(λ) of a problem.

    multipliers: λ, loss per cost, both in the problem's units; value: L rounded up; base: a plan that attains the minima;
    minima: those minima, times `denominator`.
    """

    problem: Problem
    multipliers: tuple[float, ...]
    numerators: tuple[int, ...]
    denominator: int
    value: int
    base: Int64[ndarray, "units"]
    minima: tuple[int, ...]

    @cached_property
    def approximate(self) -> Float64[ndarray, "points"]:
        """r of every point, up to `error`."""
        value = lagrangian(self.problem, self.multipliers)
        return value - value[self.base][self.problem.unit]

    @cached_property
    def error(self) -> Float64[ndarray, "points"]:
        """What rounding may have added to or taken from `approximate`."""
        value = lagrangian(self.problem, self.multipliers)
        return ROUNDING * (value + value[self.base][self.problem.unit]) + 2.0

    def within(self, gap: int) -> Bool[ndarray, "points"]:
        """Mask of the points with r ≤ gap: no plan better than L + gap takes another."""
        near = self.approximate <= gap + self.error
        rows = np.flatnonzero(near)
        near[rows] = self.reduced(rows) <= gap
        return near

    def reduced(self, rows: Int64[ndarray, "rows"]) -> Int64[ndarray, "rows"]:
        """r of some points, rounded down."""
        values = exact_lagrangian(self.problem, rows, self.numerators, self.denominator)
        minima = [self.minima[unit] for unit in self.problem.unit[rows].tolist()]
        return np.array(
            [(value - least) // self.denominator for value, least in zip(values, minima, strict=True)], dtype=np.int64
        )


def lagrangian(problem: Problem, multipliers: Sequence[float]) -> Float64[ndarray, "points"]:
    """S + λ·C of every point; sums in a fixed order, so that every machine rounds alike."""
    value = problem.objective.astype(np.float64)
    for dimension, multiplier in enumerate(multipliers):
        value = value + multiplier * problem.cost[:, dimension]
    return value


def exact_lagrangian(
    problem: Problem, rows: Int64[ndarray, "rows"], numerators: Sequence[int], denominator: int
) -> list[int]:
    """(S + λ·C) × denominator of some points, λ = numerators / denominator."""
    values = [loss * denominator for loss in problem.objective[rows].tolist()]
    for dimension, numerator in enumerate(numerators):
        costs = problem.cost[rows, dimension].tolist()
        values = [value + numerator * cost for value, cost in zip(values, costs, strict=True)]
    return values


def bound(problem: Problem, multipliers: Sequence[float]) -> Bound:
    """L(λ) for multipliers ≥ 0."""
    numerators, denominator = _common(multipliers)
    value = lagrangian(problem, multipliers)
    least = np.minimum.reduceat(value, problem.first)[problem.unit]
    rows = np.flatnonzero(value <= least + ROUNDING * least + 2.0)
    minima: dict[int, int] = {}
    base: dict[int, int] = {}
    exact = exact_lagrangian(problem, rows, numerators, denominator)
    for unit, row, candidate in zip(problem.unit[rows].tolist(), rows.tolist(), exact, strict=True):
        if unit not in minima or candidate < minima[unit]:
            minima[unit], base[unit] = candidate, row
    paid = sum(numerator * limit for numerator, limit in zip(numerators, problem.limit.tolist(), strict=True))
    return Bound(
        problem=problem,
        multipliers=tuple(multipliers),
        numerators=numerators,
        denominator=denominator,
        value=-((paid - sum(minima.values())) // denominator),
        base=np.array([base[unit] for unit in range(problem.units)], dtype=np.int64),
        minima=tuple(minima[unit] for unit in range(problem.units)),
    )


def _common(multipliers: Sequence[float]) -> tuple[tuple[int, ...], int]:
    """Multipliers as integers over one denominator, without rounding."""
    ratios = [multiplier.as_integer_ratio() for multiplier in multipliers]
    denominator = math.lcm(*(below for _, below in ratios)) if ratios else 1
    return tuple(above * (denominator // below) for above, below in ratios), denominator
