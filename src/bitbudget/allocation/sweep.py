"""The exact search on what reduced costs leave open: dynamic programming over units, best alternatives first.

The sweep starts from the plan at the multipliers and lets one unit after the other leave it, units with the smallest
reduced cost first (Pisinger's expanding core). A state is a set of units that left: its costs and loss relative to that
plan, and the sum of its reduced costs, by which no completion of it can come closer to the bound. Every state within the
limits is itself a plan, so the best one found shrinks the gap, and the units whose reduced costs exceed it drop out
before their turn. Where there are more states than allowed the least promising go, and the bound falls to what they
might have reached: it stays valid, and `complete` says no more.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray

from bitbudget.allocation.bound import Bound
from bitbudget.allocation.completion import Completion
from bitbudget.allocation.moves import Moves, Reached, Tie, moved, open_moves
from bitbudget.allocation.problem import Problem
from bitbudget.allocation.states import best_states


@dataclass(frozen=True)
class _States:
    """Sets of moves: their costs, loss and tie relative to the base plan, and sums of reduced costs; parent: the set among those
    before the last unit's turn that it came from; move: what that unit added, -1 if nothing."""

    cost: Int64[ndarray, "states dimensions"]
    loss: Int64[ndarray, "states"]
    above: Int64[ndarray, "states"]
    tie: Int64[ndarray, "states"]
    parent: Int64[ndarray, "states"]
    move: Int64[ndarray, "states"]

    @classmethod
    def empty(cls, dimensions: int) -> "_States":
        """The set of no moves."""
        zeros = np.zeros(1, np.int64)
        return cls(np.zeros((1, dimensions), np.int64), zeros, zeros, zeros, zeros, zeros - 1)

    def take(self, rows: Int64[ndarray, "rows"] | Bool[ndarray, "states"]) -> "_States":
        return _States(
            self.cost[rows], self.loss[rows], self.above[rows], self.tie[rows], self.parent[rows], self.move[rows]
        )

    def spread(self, moves: Moves, ties: Int64[ndarray, "moves"], own: range, gap: int) -> "_States":
        """Every set without a move of one unit, and with each of its moves by which reduced costs stay within the gap."""
        count = len(self.loss)
        parts = [_States(self.cost, self.loss, self.above, self.tie, np.arange(count), np.full(count, -1))]
        for move in own:
            near = np.flatnonzero(self.above <= gap - moves.above[move])
            parts.append(
                _States(
                    cost=self.cost[near] + moves.cost[move],
                    loss=self.loss[near] + moves.loss[move],
                    above=self.above[near] + moves.above[move],
                    tie=self.tie[near] + ties[move],
                    parent=near,
                    move=np.full(len(near), move),
                )
            )
        names = [entry.name for entry in fields(_States)]
        return _States(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


class Sweep:
    """One sweep over a problem; `best` is the loss of a plan already known, `units` how many may leave the base plan: with
    fewer than are open the sweep looks for plans and proves nothing."""

    def __init__(self, bound: Bound, best: int, tie: Tie, state_limit: int, units: int | None = None) -> None:
        self.problem: Problem = bound.problem
        self.bound = bound
        self.best = best
        self.state_limit = state_limit
        self.left = self.problem.limit - self.problem.cost[bound.base].sum(axis=0)
        self.base_loss = self.problem.value(bound.base)
        self.moves, whole = open_moves(bound, best - bound.value, units)
        self.dropped: int | None = None if whole else bound.value
        self.most = 1
        moves = self.moves
        self.tie = self._ties(tie)
        self.completion = Completion(moves.above, moves.cost, moves.starts, bound.multipliers)
        self.fall = self._fall()

    def _ties(self, tie: Tie) -> Int64[ndarray, "moves"]:
        """What every move adds to what decides between plans of equal loss and costs."""
        ours, base = self.problem.source[self.moves.rows].tolist(), self.problem.source[self.moves.base].tolist()
        ties = {source: tie(source) for source in {*ours, *base}}
        return np.array([ties[one] - ties[other] for one, other in zip(ours, base, strict=True)], dtype=np.int64)

    def _fall(self) -> Int64[ndarray, "stages dimensions"]:
        """What the moves of a unit and of all later units can at most take from a cost."""
        none = np.zeros((1, self.problem.dimensions), np.int64)
        if not len(self.moves.starts):
            return none
        steps = np.minimum.reduceat(np.minimum(self.moves.cost, 0), self.moves.starts, axis=0)
        return np.concatenate([np.cumsum(steps[::-1], axis=0)[::-1], none])

    def run(self, all_or_nothing: bool = False) -> Reached:
        """Sweep over all open units; `all_or_nothing` ends where a state is dropped, since the rest would prove nothing."""
        states = _States.empty(self.problem.dimensions)
        history = [states]
        leader = self._leader(states, 0, None)
        for stage in range(len(self.moves.starts)):
            own = self.moves.own(stage)
            if self.bound.value + self.moves.above[own.start] > self.best:
                break  # units come by their smallest reduced cost: all later ones are out as well
            states = self._pruned(states.spread(self.moves, self.tie, own, self.best - self.bound.value), stage + 1)
            if not len(states.loss):
                break
            if all_or_nothing and self.dropped is not None:
                self.dropped = self.bound.value  # nothing is known of the states that are left
                break
            history.append(states)
            self.most = max(self.most, len(states.loss))
            leader = self._leader(states, stage + 1, leader)
        reached = self.best if self.dropped is None else min(self.best, self.dropped)
        rows = None if leader is None else self._plan(history[: leader[1] + 1], leader[2])
        complete = self.dropped is None or self.dropped > self.best
        return Reached(rows, self.best, max(reached, self.bound.value), complete, self.most)

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

    def _plan(self, history: list[_States], state: int) -> Int64[ndarray, "units"]:
        """The base plan with the moves of a state of the last stage."""
        return moved(self.problem, self.bound.base, self.moves.rows[_traced(history, state)])


def _traced(history: Sequence[_States], state: int) -> list[int]:
    """The moves of a set of the last stage of a history."""
    moves = []
    for states in reversed(history):
        move, state = int(states.move[state]), int(states.parent[state])
        if move >= 0:
            moves.append(move)
    return moves


def _by_cost(states: _States) -> Int64[ndarray, "states"]:
    """The order of states by costs, loss and tie. They come in a few rising runs of the first cost, which a stable sort
    merges in no time; only those of equal first cost are looked at further, under one budget only the best of them."""
    if states.cost.shape[1] == 0:
        return np.lexsort((states.tie, states.loss))
    order = np.argsort(states.cost[:, 0], kind="stable")
    if states.cost.shape[1] == 1:
        order = order[_best_of_equal(states.cost[order, 0], states.loss[order])]
    first = states.cost[order, 0]
    same = np.zeros(len(order) + 1, dtype=bool)
    same[1:-1] = first[1:] == first[:-1]
    equal = np.flatnonzero(same[1:] | same[:-1])
    tied = order[equal]
    order[equal] = tied[np.lexsort((states.tie[tied], states.loss[tied], *states.cost[tied].T[::-1]))]
    return order


def _best_of_equal(cost: Int64[ndarray, "states"], loss: Int64[ndarray, "states"]) -> Bool[ndarray, "states"]:
    """Mask of the states of least loss among those of equal cost, which stand together."""
    new = np.ones(len(cost), dtype=bool)
    new[1:] = cost[1:] != cost[:-1]
    return loss == np.minimum.reduceat(loss, np.flatnonzero(new))[np.cumsum(new) - 1]
