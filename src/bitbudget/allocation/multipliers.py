"""The multipliers that give the best bound: bisection along the hull for one budget, cutting planes for several."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from bitbudget.allocation.bound import lagrangian
from bitbudget.allocation.ceiling import highest
from bitbudget.allocation.hull import taken, upgrades
from bitbudget.allocation.problem import Problem, sorted_problem

CUTS = 100
ACCURACY = 1e-9  # of the bound: more would exclude hardly another point
BOX = 1e4  # how far one step may go, in what is missing per widest cost
KEPT_BITS = 24  # of a multiplier; the rest is noise of the linear program and may differ between machines


@dataclass(frozen=True)
class Relaxed:
    """Multipliers, and the different plans met on the way to them, the furthest from the best bound first (not all within the
    limits)."""

    multipliers: tuple[float, ...]
    plans: tuple[Int64[ndarray, "units"], ...]


def relax(problem: Problem) -> Relaxed:
    """Solve the relaxation in which a unit may mix its points."""
    if problem.dimensions == 0:
        return Relaxed((), (problem.best_of_units(lagrangian(problem, ())),))
    if problem.dimensions == 1:
        rows, multiplier = taken(problem, upgrades(problem))
        return Relaxed((multiplier,), (rows,))
    return _CuttingPlanes(problem).run()


def _alone(problem: Problem, dimension: int) -> float:
    """The multiplier of one budget when all others are lifted."""
    chosen = [dimension]
    single = sorted_problem(replace(problem, cost=problem.cost[:, chosen], limit=problem.limit[chosen]))
    return relax(single).multipliers[0] if single.limit[0] >= 0 else 0.0


class _CuttingPlanes:
    """Kelley's method on the concave L(λ): every plan p bounds it by S(p) + λ·(C(p) − limit).

    The linear program looks at what is left to find: losses from the best bound so far in units of what it may still rise by,
    costs in spans of single units, multipliers from the best so far. Its tolerances would hide the rest otherwise.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.cost_unit = np.maximum(problem.cost.max(axis=0), 1).astype(np.float64)
        alone = [_alone(problem, dimension) for dimension in range(problem.dimensions)]
        self.starts = [alone] + [
            [value if place == dimension else 0.0 for place in range(problem.dimensions)]
            for dimension, value in enumerate(alone)
        ]
        self.plans: list[Int64[ndarray, "units"]] = []
        self.cuts: list[list[float]] = []
        self.height = -np.inf
        self.best = np.array(alone)
        self.box = BOX

    def run(self) -> Relaxed:
        for start in self.starts:
            self._cut(np.array(start))
        most = float(np.maximum.reduceat(self.problem.objective, self.problem.first).sum())
        scale = max(most - self.height, 1.0)
        for _ in range(CUTS):
            ceiling, step = self._master(scale)
            missing = ceiling * scale
            # Above what any plan loses the bound says that none is within the limits; it would rise for ever.
            if missing <= max(ACCURACY * abs(self.height), 1.0) or self.height > (1.0 + ACCURACY) * most + 1.0:
                break
            at_edge = step.max() >= self.box
            if not self._cut(self.best + step * scale / self.cost_unit) and at_edge:
                self.box /= 4.0
            elif at_edge:
                self.box *= 4.0
            scale = min(scale, missing)
        return Relaxed(tuple(shortened(value) for value in self.best.tolist()), self._plans())

    def _cut(self, point: Float64[ndarray, "dimensions"]) -> bool:
        """Evaluate L at a point: a new plan, a new cut; whether it is the highest so far."""
        multipliers = np.maximum(point, 0.0).tolist()
        rows = self.problem.best_of_units(lagrangian(self.problem, multipliers))
        excess = (self.problem.cost[rows].sum(axis=0) - self.problem.limit).tolist()
        loss = self.problem.value(rows)
        self.plans.append(rows)
        self.cuts.append([float(loss), *map(float, excess)])
        height = loss + sum(at * over for at, over in zip(multipliers, excess, strict=True))
        higher = height > self.height
        if higher:
            self.height, self.best = height, np.array(multipliers)
        return higher

    def _master(self, scale: float) -> tuple[float, Float64[ndarray, "dimensions"]]:
        """The highest point under all cuts: how far above the best bound, and where from its multipliers."""
        there, excess = self._above(), np.array(self.cuts)[:, 1:]
        low = np.maximum(-self.best * self.cost_unit / scale, -self.box)
        return highest(there / scale, excess / self.cost_unit, low, np.full(self.problem.dimensions, self.box))

    def _above(self) -> Float64[ndarray, "cuts"]:
        """How far every cut lies above the best bound, at its multipliers."""
        cuts = np.array(self.cuts)
        above = cuts[:, 0] - self.height
        for dimension, multiplier in enumerate(self.best.tolist()):
            above = above + multiplier * cuts[:, 1 + dimension]
        return above

    def _plans(self) -> tuple[Int64[ndarray, "units"], ...]:
        """Plans that exceed a limit by far are far above the bound, however late they were met."""
        order = np.argsort(-self._above(), kind="stable").tolist()
        different = {self.plans[place].tobytes(): self.plans[place] for place in order}
        return tuple(different.values())


def shortened(value: float) -> float:
    """A multiplier without its noisy last digits, and not below 0."""
    mantissa, exponent = np.frexp(max(value, 0.0))
    return float(np.ldexp(np.rint(np.ldexp(mantissa, KEPT_BITS)), exponent - KEPT_BITS))
