"""From a problem in integers to its best plan: bound, greedy plans, exact searches of the gap, branching on what is left."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from bitbudget.allocation.bound import Bound, bound
from bitbudget.allocation.branching import branched
from bitbudget.allocation.fill import filled, repaired
from bitbudget.allocation.meeting import Meeting
from bitbudget.allocation.moves import Reached, Tie, first_of
from bitbudget.allocation.multipliers import Relaxed, relax
from bitbudget.allocation.problem import Problem, sorted_problem
from bitbudget.allocation.sweep import Sweep
from bitbudget.allocation.tree import Tree, core_of

LAST_PLANS = 6  # of the relaxation: those near its optimum
TRIAL_SETS = (2**11, 2**15, 2**18)  # of moves in a half of a meeting that is there to find plans
TRIAL_STATES = 1024  # of a first sweep, which is there to find a plan
TRIAL_UNITS = 48  # how many units may leave the base plan in it
STATES_OF_SEVERAL = 2048  # of a sweep under several budgets: a wider one takes longer than the tree
TIED_UNITS = 16  # open units whose plans of equal loss are looked through where the limits of an effort left some out


@dataclass(frozen=True)
class Effort:
    """Limits that count work, never time: the same on every machine.

    states: of a sweep at once; nodes: of HiGHS's tree; branches: nodes of our own tree; sets: of moves in each half of a meeting.
    0 leaves HiGHS, the tree or meetings out. A million sets under two budgets take 40 MiB a half.
    """

    states: int = 2**15
    nodes: int = 2000
    branches: int = 200
    sets: int = 2**20


@dataclass(frozen=True)
class Work:
    """What it took: points and units that the bound left open, most states of the last sweep or sets of the last meeting,
    whether HiGHS was asked, and nodes of our own tree."""

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
    """With one budget a sweep closes nearly all gaps. With several, all plans within the gap are listed where they are few, and a
    sweep is for those whose costs repeat. What is open goes to a tree, whose nodes are listed; HiGHS may know a better plan."""
    closing = _Closing(lower, best, effort, tie)
    if lower.problem.dimensions > 1:
        closing.meet()
        closing.sweep(STATES_OF_SEVERAL)
    else:
        closing.sweep(TRIAL_STATES, TRIAL_UNITS)
        closing.sweep(effort.states)
        closing.meet()
    closing.grow()
    closing.propose()
    return closing.found()


class _Closing:
    """The best plan so far and the bound reached so far, and the methods that bring them together."""

    def __init__(self, lower: Bound, best: Int64[ndarray, "units"], effort: Effort, tie: Tie) -> None:
        self.lower = lower
        self.problem = lower.problem
        self.best = best
        self.effort = effort
        self.tie = tie
        self.bound = lower.value
        self.complete = False
        self.states = 0
        self.asked = False
        self.nodes = 0

    @property
    def value(self) -> int:
        return self.problem.value(self.best)

    @property
    def is_open(self) -> bool:
        return self.bound < self.value

    def _take(self, reached: Reached) -> None:
        """A search's bound, and its plan where it met one that is as good."""
        self.bound = max(self.bound, reached.bound)
        self.complete, self.states = reached.complete, reached.states
        if reached.rows is not None:
            assert self.problem.feasible(reached.rows), "totals are integers: what a search counted must hold"
            self.best = first_of(self.problem, self.tie, self.best, reached.rows)

    def meet(self) -> None:
        """All sets of moves within the gap, or within as much of it as leaves few enough."""
        if not self.complete:
            self._take(Meeting(self.lower, self.value, self.tie).run(self.effort.sets, TRIAL_SETS))

    def sweep(self, states: int, units: int | None = None) -> None:
        """Over all open units, or some. Under several budgets one that cannot hold all states ends at once."""
        if not self.complete:
            sweep = Sweep(self.lower, self.value, self.tie, min(states, self.effort.states), units)
            self._take(sweep.run(all_or_nothing=self.problem.dimensions > 1))

    def grow(self) -> None:
        """Branch and bound on the open units; where the loss is the least already, only to settle ties of few units."""
        wanted = self.is_open or not self.complete
        core = core_of(self.lower, self.value) if wanted and self.effort.branches > 0 else None
        if core is None or (not self.is_open and core.problem.units > TIED_UNITS):
            return
        problem = self.problem
        tree = Tree(
            problem=core.problem,
            rows=core.inside(problem, self.best),
            tie=lambda row: self.tie(int(problem.source[row])),
            root=self.bound - core.constant,
            prices=self.lower.multipliers,
        )
        tree.run(self.effort.branches)
        self.best, self.nodes = core.whole(problem, tree.rows), tree.nodes
        self.bound = max(self.bound, tree.bound + core.constant)

    def propose(self) -> None:
        """HiGHS's plan where it is better, and once more all sets within what it leaves of the gap."""
        if not self.is_open or self.effort.nodes <= 0:
            return
        self.asked = True
        proposal = branched(self.lower, self.value, self.effort.nodes)
        better = None if proposal is None else greedy(self.problem, [proposal])
        if better is not None and self.problem.value(better) < self.value:
            self.best = better
            self.meet()

    def found(self) -> Found:
        in_units = np.bincount(
            self.problem.unit[self.lower.within(self.value - self.lower.value)], minlength=self.problem.units
        )
        points, units = int(in_units[in_units > 1].sum()), int((in_units > 1).sum())
        work = Work(points, units, self.states, self.asked, self.nodes)
        return Found(self.best, self.value, min(self.bound, self.value), self.lower.multipliers, work)


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
    found = search(turned, effort, lambda row: tie(int(problem.source[row])))
    return None if found is None else replace(found, rows=turned.source[found.rows])
