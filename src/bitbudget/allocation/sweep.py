"""The exact search on what reduced costs leave open: dynamic programming over units, best alternatives first.

The sweep starts from the plan at the multipliers and lets one unit after the other leave it, units with the smallest
reduced cost first (Pisinger's expanding core). A state is a set of units that left: its costs and loss relative to that
plan, and the sum of its reduced costs, by which no completion of it can come closer to the bound. Every state within the
limits is itself a plan, so the best one found shrinks the gap, and the units whose reduced costs exceed it drop out
before their turn. Where there are more states than allowed the least promising go, and the bound falls to what they
might have reached: it stays valid, and `complete` says no more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray

from bitbudget.allocation.bound import Bound
from bitbudget.allocation.completion import Completion
from bitbudget.allocation.problem import Problem
from bitbudget.allocation.states import best_states


@dataclass(frozen=True)
class Swept:
    """rows: the best plan met, None if no better or equal one exists; bound: no plan lies below it; states: most at once."""

    rows: Int64[ndarray, "units"] | None
    value: int
    bound: int
    states: int

    @property
    def complete(self) -> bool:
        return self.bound >= self.value


@dataclass(frozen=True)
class _States:
    """Sets of moves away from the base plan: their costs, loss and tie relative to it, and sums of reduced costs."""

    cost: Int64[ndarray, "states dimensions"]
    loss: Int64[ndarray, "states"]
    above: Int64[ndarray, "states"]
    tie: Int64[ndarray, "states"]
    parent: Int64[ndarray, "states"]
    move: Int64[ndarray, "states"]

    def take(self, rows: Int64[ndarray, "rows"] | Bool[ndarray, "states"]) -> "_States":
        return _States(
            self.cost[rows], self.loss[rows], self.above[rows], self.tie[rows], self.parent[rows], self.move[rows]
        )


class Sweep:
    """One sweep over a problem; `best` is the loss of a plan already known, `units` how many may leave the base plan: with
    fewer than are open the sweep looks for plans and proves nothing."""

    def __init__(
        self, bound: Bound, best: int, tie: Callable[[int], int], state_limit: int, units: int | None = None
    ) -> None:
        self.problem: Problem = bound.problem
        self.bound = bound
        self.best = best
        self.state_limit = state_limit
        self.left = self.problem.limit - self.problem.cost[bound.base].sum(axis=0)
        self.base_loss = self.problem.value(bound.base)
        self.dropped: int | None = None
        self.most = 1
        self._find_moves(tie, units)

    def _find_moves(self, tie: Callable[[int], int], units: int | None) -> None:
        """The moves that the gap leaves open, grouped by unit, and how far the later ones reach."""
        rows = np.flatnonzero(self.bound.within(self.best - self.bound.value))
        base = self.bound.base[self.problem.unit[rows]]
        rows, base = rows[rows != base], base[rows != base]
        above = self.bound.reduced(rows)
        unit = self.problem.unit[rows]
        nearest = np.full(self.problem.units, np.iinfo(np.int64).max)
        np.minimum.at(nearest, unit, above)
        order = np.lexsort((above, unit, nearest[unit]))
        starts = np.flatnonzero(np.diff(unit[order], prepend=-1))
        if units is not None and len(starts) > units:
            order, self.dropped = order[: starts[units]], self.bound.value
        self.rows, base, self.above = rows[order], base[order], above[order]
        self.cost = self.problem.cost[self.rows] - self.problem.cost[base]
        self.loss = self.problem.objective[self.rows] - self.problem.objective[base]
        source = self.problem.source
        ties = {int(row): tie(int(source[row])) for row in np.union1d(self.rows, base)}
        self.tie = np.array(
            [ties[int(row)] - ties[int(was)] for row, was in zip(self.rows, base, strict=True)], np.int64
        )
        unit = self.problem.unit[self.rows]
        self.starts = np.flatnonzero(np.diff(unit, prepend=-1)) if len(unit) else np.zeros(0, np.int64)
        # What the moves of a unit and of all later units can at most take from a cost.
        self.completion = Completion(self.above, self.cost, self.starts, self.bound.multipliers)
        self.fall = self._reach(np.minimum(self.cost, 0), np.minimum)

    def _reach(self, change: Int64[ndarray, "moves dimensions"], most: np.ufunc) -> Int64[ndarray, "stages dimensions"]:
        if not len(self.starts):
            return np.zeros((1, self.problem.dimensions), np.int64)
        steps = most.reduceat(change, self.starts, axis=0)
        total = np.cumsum(steps[::-1], axis=0)[::-1]
        return np.concatenate([total, np.zeros((1, self.problem.dimensions), np.int64)])

    def run(self, all_or_nothing: bool = False) -> Swept:
        """Sweep over all open units; `all_or_nothing` ends where a state is dropped, since the rest would prove nothing."""
        zeros = np.zeros(1, np.int64)
        states = _States(np.zeros((1, self.problem.dimensions), np.int64), zeros, zeros, zeros, zeros, zeros - 1)
        history = [states]
        leader = self._leader(states, 0, None)
        for stage, start in enumerate(self.starts.tolist()):
            stop = int(self.starts[stage + 1]) if stage + 1 < len(self.starts) else len(self.rows)
            if self.bound.value + self.above[start] > self.best:
                break  # units come by their smallest reduced cost: all later ones are out as well
            states = self._pruned(self._moved(states, start, stop), stage + 1)
            if not len(states.loss):
                break
            if all_or_nothing and self.dropped is not None:
                self.dropped = self.bound.value  # nothing is known of the states that are left
                break
            history.append(states)
            self.most = max(self.most, len(states.loss))
            leader = self._leader(states, stage + 1, leader)
        reached = self.best if self.dropped is None else min(self.best, self.dropped)
        return Swept(self._plan(history, leader), self.best, max(reached, self.bound.value), self.most)

    def _moved(self, states: _States, start: int, stop: int) -> _States:
        """Every state without a move of this unit and with each of its moves that the bound allows."""
        count = len(states.loss)
        whole = _States(states.cost, states.loss, states.above, states.tie, np.arange(count), np.full(count, -1))
        parts = [whole]
        for move in range(start, stop):
            near = np.flatnonzero(states.above <= self.best - self.bound.value - self.above[move])
            parts.append(
                _States(
                    cost=states.cost[near] + self.cost[move],
                    loss=states.loss[near] + self.loss[move],
                    above=states.above[near] + self.above[move],
                    tie=states.tie[near] + self.tie[move],
                    parent=near,
                    move=np.full(len(near), move),
                )
            )
        return _joined(parts)

    def _pruned(self, states: _States, stage: int) -> _States:
        """Without states that cannot end within the limits, beat the best plan, or beat another state."""
        inside = self._floor(states, stage) <= self.best
        for dimension, room in enumerate((self.left - self.fall[stage]).tolist()):
            inside &= states.cost[:, dimension] <= room
        states = states.take(np.flatnonzero(inside))
        order = _by_cost(states)
        states = states.take(order[best_states(states.cost[order], states.loss[order])])
        if len(states.loss) <= self.state_limit:
            return states
        floor = self._floor(states, stage)
        order = np.argsort(floor, kind="stable")
        lost = int(floor[order[self.state_limit]])
        self.dropped = lost if self.dropped is None else min(self.dropped, lost)
        return states.take(np.sort(order[: self.state_limit]))

    def _floor(self, states: _States, stage: int) -> Int64[ndarray, "states"]:
        """No completion of a state loses less: the bound, its reduced costs, and what is still to come."""
        return self.bound.value + states.above + self.completion.least(self.left - states.cost, stage)

    def _leader(
        self, states: _States, stage: int, leader: tuple[tuple[int, ...], int, int] | None
    ) -> tuple[tuple[int, ...], int, int] | None:
        """The best plan so far as (loss, costs, tie), stage, state."""
        inside = np.flatnonzero((states.cost <= self.left).all(axis=1) & (states.loss + self.base_loss <= self.best))
        if not len(inside):
            return leader
        order = np.lexsort((states.tie[inside], *states.cost[inside].T[::-1], states.loss[inside]))
        first = int(inside[order[0]])
        key = (int(states.loss[first]), *states.cost[first].tolist(), int(states.tie[first]))
        if leader is not None and leader[0] <= key:
            return leader
        self.best = int(states.loss[first]) + self.base_loss
        return key, stage, first

    def _plan(
        self, history: list[_States], leader: tuple[tuple[int, ...], int, int] | None
    ) -> Int64[ndarray, "units"] | None:
        """The leader's moves, traced back to the base plan."""
        if leader is None:
            return None
        rows = self.bound.base.copy()
        _, stage, state = leader
        for states in reversed(history[: stage + 1]):
            move, parent = int(states.move[state]), int(states.parent[state])
            if move >= 0:
                row = self.rows[move]
                rows[self.problem.unit[row]] = row
            state = parent
        return rows


def _joined(parts: Sequence[_States]) -> _States:
    names = [entry.name for entry in fields(_States)]
    return _States(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def _by_cost(states: _States) -> Int64[ndarray, "states"]:
    """The order of states by costs, loss and tie. They come in a few rising runs of the first cost, which a stable sort
    merges in no time; only those of equal first cost are looked at further."""
    if states.cost.shape[1] == 0:
        return np.lexsort((states.tie, states.loss))
    order = np.argsort(states.cost[:, 0], kind="stable")
    first = states.cost[order, 0]
    same = np.zeros(len(order) + 1, dtype=bool)
    same[1:-1] = first[1:] == first[:-1]
    equal = np.flatnonzero(same[1:] | same[:-1])
    tied = order[equal]
    order[equal] = tied[np.lexsort((states.tie[tied], states.loss[tied], *states.cost[tied].T[::-1]))]
    return order
