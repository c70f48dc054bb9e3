"""From a problem in integers to its best plan: bound, greedy plans, exact sweep, branching on what is left."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from bitbudget.allocation.bound import Bound, bound
from bitbudget.allocation.branching import branched
from bitbudget.allocation.fill import filled, repaired
from bitbudget.allocation.multipliers import Relaxed, relax
from bitbudget.allocation.problem import Problem, sorted_problem
from bitbudget.allocation.sweep import Sweep, Swept
from bitbudget.allocation.tree import Core, Tree, core_of

LAST_PLANS = 6  # of the relaxation: those near its optimum
TRIAL_STATES = 1024  # of the first sweep, which is there to find a plan
TRIAL_UNITS = 48  # how many units may leave the base plan in it
SHARE_BEFORE_TREE = 4  # of the states, under several budgets: a wider sweep takes longer than the tree
FIRST_BRANCHES = 40  # of the tree, before HiGHS is asked for a better plan at its root: a tree below a poor plan never ends

Tie = Callable[[int], int]  # source of a point → what decides between plans of equal loss and costs


@dataclass(frozen=True)
class Effort:
    """Limits that count work, never time: the same on every machine.

    states: of a sweep at once; nodes: of HiGHS's tree; branches: nodes of our own tree; 0 leaves HiGHS or the tree out.
    near: the gap, as a share of the loss, at which several budgets are left as they are; 0 goes on until nothing is open.
    """

    states: int = 2**15
    nodes: int = 2000
    branches: int = 200
    near: float = 1e-5


@dataclass(frozen=True)
class Work:
    """What it took: points and units that the bound left open, most states of the last sweep, whether HiGHS was asked, and
    nodes of our own tree."""

    open_points: int = 0
    open_units: int = 0
    states: int = 0
    branched: bool = False
    branches: int = 0


@dataclass(frozen=True)
class Found:
    """The best plan met; bound: no plan is below it."""

    rows: Int64[ndarray, "units"]
    value: int
    bound: int
    multipliers: tuple[float, ...]
    work: Work

    @property
    def optimal(self) -> bool:
        return self.bound >= self.value


def search(
    problem: Problem,
    effort: Effort,
    tie: Tie,
    starts: Iterable[Int64[ndarray, "units"]] = (),
    relaxed: Relaxed | None = None,
) -> Found | None:
    """The best plan of a sorted problem; None where none was found within the limits.

    starts: plans to begin from, as rows of the problem; those outside the limits are repaired. relaxed: the problem's
    relaxation where it is known.
    """
    relaxed = relaxed or relax(problem)
    best = greedy(problem, [*starts, *relaxed.plans[-LAST_PLANS:]])
    if best is None:
        best = _any_plan(problem, effort, tie)
    if best is None:
        return None
    lower = bound(problem, relaxed.multipliers)
    return _closed(lower, best, effort, tie)


def greedy(problem: Problem, plans: Iterable[Int64[ndarray, "units"]]) -> Int64[ndarray, "units"] | None:
    """The best of some plans after repair and fill, None where none could be repaired."""
    best = None
    for plan in plans:
        inside = plan if problem.feasible(plan) else repaired(problem, plan)
        if inside is None:
            continue
        candidate = filled(problem, inside)
        if best is None or problem.value(candidate) < problem.value(best):
            best = candidate
    return best


def _closed(lower: Bound, best: Int64[ndarray, "units"], effort: Effort, tie: Tie) -> Found:
    """A sweep over few units for a good plan, then one over all, then trees and HiGHS while the gap stays open.

    With one budget the sweep closes nearly all, so where it did not a plan is missing: HiGHS first. With several the tree proves
    most, but below a poor plan it never ends: where a turn of it did not halve the gap, HiGHS is asked for a plan at its root.
    """
    several = lower.problem.dimensions > 1
    closing = _Closing(lower, best, effort, tie)
    closing.sweep(min(TRIAL_STATES, effort.states), TRIAL_UNITS)
    if not closing.complete:
        closing.sweep(max(effort.states // SHARE_BEFORE_TREE, 1) if several else effort.states)
    if several:
        before = 2 * closing.gap
        while closing.gap <= before // 2 and closing.growing.nodes < effort.branches and closing.is_open:
            before = closing.gap
            closing.grow(FIRST_BRANCHES)
        closing.propose(min(1, effort.nodes), max(effort.states // SHARE_BEFORE_TREE, 1))
    else:
        closing.propose(effort.nodes, effort.states)
    closing.grow(effort.branches)
    if several:
        closing.propose(effort.nodes, effort.states)
    return closing.found()


class _Closing:
    """The best plan so far and the bound reached so far, and the methods that bring them together; none does anything where the
    gap is closed or, under several budgets, near."""

    def __init__(self, lower: Bound, best: Int64[ndarray, "units"], effort: Effort, tie: Tie) -> None:
        self.lower = lower
        self.best = best
        self.effort = effort
        self.tie = tie
        self.reached = lower.value
        self.complete = False
        self.states = 0
        self.asked = False
        self.growing = _Growing(lower, tie)

    @property
    def gap(self) -> int:
        return self.lower.problem.value(self.best) - self.reached

    @property
    def is_open(self) -> bool:
        near = self.effort.near if self.lower.problem.dimensions > 1 else 0.0
        return self.gap > 0 and self.gap > near * self.lower.problem.value(self.best)

    def sweep(self, states: int, units: int | None = None) -> None:
        """Over all open units, or some. Under several budgets one that cannot hold all states ends at once."""
        problem = self.lower.problem
        swept = Sweep(self.lower, problem.value(self.best), self.tie, states, units).run(
            all_or_nothing=units is None and problem.dimensions > 1
        )
        self.best = _better(problem, self.best, swept)
        self.reached = max(self.reached, swept.bound)
        self.complete, self.states = swept.complete, swept.states

    def propose(self, nodes: int, states: int) -> None:
        """HiGHS's plan where it is better, and a sweep over what it leaves open."""
        if not self.is_open or nodes <= 0:
            return
        problem = self.lower.problem
        proposal = branched(self.lower, problem.value(self.best), nodes)
        better = greedy(problem, [self.best] if proposal is None else [self.best, proposal])
        self.best = self.best if better is None else better
        self.asked = True
        self.sweep(states)

    def grow(self, nodes: int) -> None:
        """More of the tree, of all its nodes as many as are left of the effort's."""
        nodes = min(nodes, self.effort.branches - self.growing.nodes)
        if self.is_open and nodes > 0:
            self.best = self.growing.grown(self.best, nodes)
            self.reached = max(self.reached, self.growing.bound)

    def found(self) -> Found:
        problem = self.lower.problem
        value = problem.value(self.best)
        in_units = np.bincount(problem.unit[self.lower.within(value - self.lower.value)], minlength=problem.units)
        points, units = int(in_units[in_units > 1].sum()), int((in_units > 1).sum())
        work = Work(points, units, self.states, self.asked, self.growing.nodes)
        return Found(self.best, value, min(self.reached, value), self.lower.multipliers, work)


class _Growing:
    """Branch and bound on the open units, which goes on where it was left; nodes: looked at so far."""

    def __init__(self, lower: Bound, tie: Tie) -> None:
        self.lower = lower
        self.tie = tie
        self.bound = lower.value
        self.nodes = 0
        self._core: Core | None = None
        self._tree: Tree | None = None

    def grown(self, best: Int64[ndarray, "units"], nodes: int) -> Int64[ndarray, "units"]:
        """The best plan after so many more nodes."""
        problem = self.lower.problem
        value = problem.value(best)
        if self._core is None or self._tree is None:
            self._core = core_of(self.lower, value)
            if self._core is None:
                return best
            core = self._core
            root = self.lower.value - core.constant
            self._tree = Tree(core.problem, value - core.constant, _through(problem, self.tie), root)
        core, tree = self._core, self._tree
        tree.know(value - core.constant)
        tree.run(tree.nodes + nodes)
        self.bound, self.nodes = tree.bound + core.constant, tree.nodes
        if tree.rows is not None and tree.best + core.constant < value:
            return core.whole(problem, tree.rows)
        return best


def _through(problem: Problem, tie: Tie) -> Tie:
    """A tie for points whose source is a row of the problem."""
    return lambda row: tie(int(problem.source[row]))


def _better(problem: Problem, best: Int64[ndarray, "units"], swept: Swept) -> Int64[ndarray, "units"]:
    """The sweep's plan where it met one: it is at least as good, and the first among equals."""
    if swept.rows is None:
        return best
    assert problem.feasible(swept.rows), "totals are integers: what the sweep counted must hold"
    return swept.rows


def _any_plan(problem: Problem, effort: Effort, tie: Tie) -> Int64[ndarray, "units"] | None:
    """A plan within all limits, found by minimising the last cost under the others."""
    found = least_cost(problem, problem.dimensions - 1, effort, tie)
    return found.rows if found is not None and problem.feasible(found.rows) else None


def least_cost(problem: Problem, dimension: int, effort: Effort, tie: Tie) -> Found | None:
    """The plan of least cost in one dimension within the limits of the others; rows are those of `problem`."""
    others = [place for place in range(problem.dimensions) if place != dimension]
    turned = replace(
        problem,
        objective=problem.cost[:, dimension],
        cost=problem.cost[:, others],
        limit=problem.limit[others],
        source=np.arange(len(problem.unit)),
    )
    turned = sorted_problem(turned)
    # A plan within the limit may be the only one: what is merely near it is not enough.
    found = search(turned, replace(effort, near=0.0), lambda row: tie(int(problem.source[row])))
    return None if found is None else replace(found, rows=turned.source[found.rows])
