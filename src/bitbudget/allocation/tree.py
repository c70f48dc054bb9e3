"""Branch and bound with the bound of `bound.py`: for gaps that hold too many plans to be listed at once.

A node forbids some points. Its relaxation is a small linear program whose multipliers give a bound in integers and whose
mixed unit says where to split: the cheaper half of that unit's points, or the costlier. Reduced costs forbid more; where few
sets of moves are left a meeting finishes the node. Nodes with the least bound come first, and they are counted, not timed.
"""

from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray

from bitbudget.allocation.bound import Bound, bound
from bitbudget.allocation.fill import filled, repaired
from bitbudget.allocation.highs import silent
from bitbudget.allocation.meeting import Meeting
from bitbudget.allocation.moves import Tie, first_of
from bitbudget.allocation.multipliers import shortened
from bitbudget.allocation.problem import Problem

NODE_SETS = 2**16  # of moves in each half of a node's meeting
NODE_TRIAL = 2**11  # of one that is there to find plans


@dataclass(frozen=True)
class Core:
    """The open units of a problem as a problem of their own; `source` of its points are rows of the whole.

    plan: the base plan of the whole, which holds for all other units; constant: their loss.
    """

    problem: Problem
    plan: Int64[ndarray, "units"]
    constant: int

    def inside(self, whole: Problem, plan: Int64[ndarray, "units"]) -> Int64[ndarray, "open"]:
        """A plan of the whole problem, as good as the best known one, as rows of the core."""
        opened = whole.unit[self.problem.source[self.problem.first]]
        return np.searchsorted(self.problem.source, plan[opened])

    def whole(self, whole: Problem, rows: Int64[ndarray, "open"]) -> Int64[ndarray, "units"]:
        """A plan of the core as one of the whole problem."""
        plan = self.plan.copy()
        chosen = self.problem.source[rows]
        plan[whole.unit[chosen]] = chosen
        return plan


def core_of(lower: Bound, best: int) -> Core | None:
    """What reduced costs leave open below `best`; None where nothing is open."""
    problem = lower.problem
    rows = np.flatnonzero(lower.within(best - lower.value))
    counts = np.bincount(problem.unit[rows], minlength=problem.units)
    closed = rows[counts[problem.unit[rows]] == 1]
    rows = rows[counts[problem.unit[rows]] > 1]
    if not len(rows):
        return None
    core = Problem(
        unit=np.unique(problem.unit[rows], return_inverse=True)[1].astype(np.int64),
        objective=problem.objective[rows],
        cost=problem.cost[rows],
        limit=problem.limit - problem.cost[closed].sum(axis=0),
        source=rows,
    )
    return Core(core, lower.base.copy(), int(problem.objective[closed].sum()))


class Tree:
    """Branch and bound over a core. rows: the best plan so far, at first one that is known.

    root: a bound; prices: the multipliers of the limits there.
    """

    def __init__(
        self, problem: Problem, rows: Int64[ndarray, "units"], tie: Tie, root: int, prices: tuple[float, ...]
    ) -> None:
        self.problem = problem
        self.rows = rows
        self.best = problem.value(rows)
        self.tie = tie
        self.nodes = 0
        self.pushed = 0
        self.root = root
        self.open: list[tuple[int, int, Bool[ndarray, "points"]]] = [(-1, 0, np.ones(len(problem.unit), dtype=bool))]
        self.relaxation = _Relaxation(problem, max(self.best - root, 1), prices)

    @property
    def bound(self) -> int:
        """No plan of the core lies below it."""
        return min(self.best, max(self.root, self.open[0][0])) if self.open else self.best

    def run(self, nodes: int) -> None:
        """Look at nodes until none could hold a plan as good as the best or so many were looked at."""
        while self.open and self.nodes < nodes and self.open[0][0] <= self.best:
            floor, _, allowed = heappop(self.open)
            self.nodes += 1
            self._look_at(floor, allowed)

    def _look_at(self, floor: int, allowed: Bool[ndarray, "points"]) -> None:
        """Bound a node; close it or split it."""
        shares, multipliers = self.relaxation.solve(allowed)
        node = self.problem.subset(allowed)
        lower = bound(node, multipliers)
        if lower.value > self.best:
            return
        rows = np.flatnonzero(allowed)
        self._propose(node, rows, shares[rows])
        met = Meeting(lower, self.best, self.tie).run(NODE_SETS, (NODE_TRIAL,))
        if met.rows is not None:
            self._keep(rows[met.rows])
        if met.complete:
            return
        floor = max(floor, met.bound)
        kept = lower.within(self.best - lower.value)
        for half in _halves(self.problem, rows[kept], shares):
            self.pushed += 1
            heappush(self.open, (floor, self.pushed, half))

    def _propose(self, node: Problem, rows: Int64[ndarray, "points"], shares: Float64[ndarray, "points"]) -> None:
        """Take every unit's largest share, repair, fill."""
        plan = repaired(node, node.best_of_units(-shares))
        if plan is not None:
            self._keep(rows[filled(node, plan)])

    def _keep(self, plan: Int64[ndarray, "units"]) -> None:
        self.rows = first_of(self.problem, self.tie, self.rows, plan)
        self.best = self.problem.value(self.rows)


def _halves(
    problem: Problem, rows: Int64[ndarray, "kept"], shares: Float64[ndarray, "points"]
) -> list[Bool[ndarray, "points"]]:
    """Two nodes that share out the points of the most mixed unit, where it is mixed half to half; of a unit that is not
    mixed, its point and the others."""
    unit = problem.unit[rows]
    counts = np.bincount(unit, minlength=problem.units)
    largest = np.zeros(problem.units)
    np.maximum.at(largest, unit, shares[rows])
    chosen = int(np.argmin(np.where(counts > 1, largest, 2.0)))
    own = rows[unit == chosen]
    others = np.zeros(len(problem.unit), dtype=bool)
    others[rows[unit != chosen]] = True
    share = shares[own]
    if share.max() > 1.0 - 1e-6:
        first = np.arange(len(own)) == int(np.argmax(share))
    else:
        # The points stand by cost; both sides get a part of the mixture, so that neither node repeats the parent.
        upto = np.cumsum(share) < 0.5 * share.sum()
        upto[int(np.argmax(share > 0))] = True
        first = upto
    halves = []
    for side in (first, ~first):
        half = others.copy()
        half[own[side]] = True
        halves.append(half)
    return halves


class _Relaxation:
    """The linear program of a core in which units may mix points, and limits may be exceeded at a steep price, so that every
    node has an answer and its multipliers a finite bound."""

    STEEP = 1e3  # for exceeding a limit by the widest span of a cost: gaps, and multiples of its price at the root

    def __init__(self, problem: Problem, gap: int, prices: tuple[float, ...]) -> None:
        from scipy.sparse import csc_array, csr_array, hstack  # type: ignore[import-untyped]

        self.problem = problem
        points, dimensions = len(problem.unit), problem.dimensions
        base = problem.first[problem.unit]
        self.gap = float(gap)
        self.span = np.maximum(problem.cost.max(axis=0) - problem.cost.min(axis=0), 1).astype(np.float64)
        steep = self.STEEP * (1.0 + np.array(prices) * self.span / self.gap)
        self.loss = np.concatenate([(problem.objective - problem.objective[base]) / self.gap, steep])
        cost = (problem.cost - problem.cost[base]) / self.span
        self.above = hstack([csr_array(cost.T), csr_array(-np.eye(dimensions))]).tocsc()
        self.left = (problem.limit - problem.cost[problem.first].sum(axis=0)) / self.span
        self.one = csc_array(
            (np.ones(points), (problem.unit, np.arange(points))), shape=(problem.units, points + dimensions)
        )

    def solve(self, allowed: Bool[ndarray, "points"]) -> tuple[Float64[ndarray, "points"], tuple[float, ...]]:
        """Shares of the points, and the multipliers of the limits."""
        from scipy.optimize import linprog  # type: ignore[import-untyped]

        # Forbidden points are no columns at all: most of the time goes into handing the program over.
        rows = np.flatnonzero(allowed)
        columns = np.concatenate([rows, len(allowed) + np.arange(self.problem.dimensions)])
        with silent():
            answer = linprog(
                self.loss[columns],
                A_ub=self.above[:, columns],
                b_ub=self.left,
                A_eq=self.one[:, columns],
                b_eq=np.ones(self.problem.units),
                method="highs-ds",
            )
        if answer.x is None:  # no answer is no bound: multipliers of 0 still give a valid one
            return allowed.astype(np.float64), (0.0,) * self.problem.dimensions
        shares = np.zeros(len(allowed))
        shares[rows] = answer.x[: len(rows)]
        multipliers = -answer.ineqlin.marginals * self.gap / self.span
        return shares, tuple(shortened(float(value)) for value in multipliers)
