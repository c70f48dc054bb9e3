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
from bitbudget.allocation.tree import Tree, core_of

LAST_PLANS = 6  # of the relaxation: those near its optimum
TRIAL_STATES = (1024, 2048)  # of the first sweep, which is there to find a plan: for one budget, for several
TRIAL_UNITS = 48  # how many units may leave the base plan in it
SHARE_BEFORE_TREE = 4  # of the states, under several budgets: a wider sweep takes longer than the tree

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
    """A sweep over few units for a good plan, then one over all. Where the gap stays open, a tree, and HiGHS for a better
    plan with a last sweep: under several budgets the tree first, which proves most, and neither for what is near."""
    problem = lower.problem
    several = problem.dimensions > 1
    best, swept = _swept(lower, best, tie, min(TRIAL_STATES[several], effort.states), units=TRIAL_UNITS)
    if not swept.complete:
        states = max(effort.states // SHARE_BEFORE_TREE, 1) if several else effort.states
        best, swept = _swept(lower, best, tie, states, all_or_nothing=several)
    reached, nodes, asked = swept.bound, 0, False
    for method in ("tree", "highs") if several else ("highs", "tree"):
        gap = problem.value(best) - reached
        if gap <= 0 or (several and gap <= effort.near * problem.value(best)):
            break
        if method == "tree" and effort.branches > 0:
            best, floor, nodes = _grown(lower, best, tie, effort.branches)
            reached = max(reached, floor)
        if method == "highs" and effort.nodes > 0:
            best, swept = _proposed(lower, best, effort, tie)
            reached, asked = max(reached, swept.bound), True
    value = problem.value(best)
    in_units = np.bincount(problem.unit[lower.within(value - lower.value)], minlength=problem.units)
    work = Work(int(in_units[in_units > 1].sum()), int((in_units > 1).sum()), swept.states, asked, nodes)
    return Found(best, value, min(reached, value), lower.multipliers, work)


def _proposed(
    lower: Bound, best: Int64[ndarray, "units"], effort: Effort, tie: Tie
) -> tuple[Int64[ndarray, "units"], Swept]:
    """HiGHS's plan where it is better, and a sweep over what it leaves open."""
    problem = lower.problem
    proposal = branched(lower, problem.value(best), effort.nodes)
    better = greedy(problem, [best] if proposal is None else [best, proposal])
    return _swept(lower, best if better is None else better, tie, effort.states, all_or_nothing=problem.dimensions > 1)


def _grown(
    lower: Bound, best: Int64[ndarray, "units"], tie: Tie, nodes: int
) -> tuple[Int64[ndarray, "units"], int, int]:
    """The best plan, a bound and the number of nodes after branch and bound on the open units."""
    problem = lower.problem
    core = core_of(lower, problem.value(best))
    if core is None:
        return best, lower.value, 0
    tree = Tree(core.problem, problem.value(best) - core.constant, _through(problem, tie), lower.value - core.constant)
    tree.run(nodes)
    if tree.rows is not None and tree.best + core.constant < problem.value(best):
        best = core.whole(problem, tree.rows)
    return best, tree.bound + core.constant, tree.nodes


def _through(problem: Problem, tie: Tie) -> Tie:
    """A tie for points whose source is a row of the problem."""
    return lambda row: tie(int(problem.source[row]))


def _swept(
    lower: Bound,
    best: Int64[ndarray, "units"],
    tie: Tie,
    states: int,
    all_or_nothing: bool = False,
    units: int | None = None,
) -> tuple[Int64[ndarray, "units"], Swept]:
    problem = lower.problem
    swept = Sweep(lower, problem.value(best), tie, states, units).run(all_or_nothing)
    return _better(problem, best, swept), swept


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
