"""Meeting in the middle: every plan within a gap of the bound, from the sets of moves of two halves of the open units.

A plan that loses at most L + gap consists of moves whose reduced costs add up to at most the gap, and leaves of every limit at
most gap / λ unused. Sets of moves that cheap are few, fewer still in one half of the units: both halves are listed, and every set
of one meets those of the other that fill the limits nearly and do not exceed them (Horowitz and Sahni 1974, with the window that
reduced costs give). No plan need be known: a gap in which one is found proves the best of them, one without raises the bound.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from bitbudget.allocation.bound import Bound
from bitbudget.allocation.moves import Reached, Tie, moved, open_moves, tie_of
from bitbudget.allocation.pairs import Pairs
from bitbudget.allocation.subsets import STEPS, Subsets, counted

PAIRS = 2**22  # looked at in one gap
FAR = 2**62

Leader = tuple[tuple[int, ...], list[int]]  # (loss, costs, tie) relative to the base plan, and the moves


class Meeting:
    """The search in growing gaps; `best` is the loss of a plan already known."""

    def __init__(self, bound: Bound, best: int, tie: Tie) -> None:
        self.bound = bound
        self.problem = bound.problem
        self.best = best
        self.left = self.problem.limit - self.problem.cost[bound.base].sum(axis=0)
        self.base_loss = self.problem.value(bound.base)
        self.tie = tie
        self.moves, _ = open_moves(bound, best - bound.value)
        units = range(len(self.moves.starts))
        self.halves = (units[::2], units[1::2])
        self.leader: Leader | None = None
        self.reached = bound.value
        self.complete = False
        self.most = 1

    def run(self, sets: int, trials: Sequence[int] = ()) -> Reached:
        """The whole gap of the best plan if a half has at most `sets` there; before, to find plans, as much of it as leaves as few
        as each trial says."""
        for trial in trials:
            if not self.complete and trial < sets:
                self._list(trial, partly=True)
        if not self.complete:
            self._list(sets, partly=False)
        rows = None
        if self.leader is not None:
            rows = moved(self.problem, self.bound.base, self.moves.rows[self.leader[1]])
        return Reached(rows, self.best, self.reached, self.complete, self.most)

    def _list(self, sets: int, partly: bool) -> None:
        """Look at the plans within the gap, or, if `partly`, within as much of it as leaves at most `sets` in a half."""
        gap = self.best - self.bound.value
        counts = [counted(self.moves, units, gap) for units in self.halves]
        steps = int(np.searchsorted(np.maximum(*counts), sets, side="right")) - 1
        if steps < 0 or (steps < STEPS and not partly):
            return
        within = steps * gap // STEPS
        one, other = (
            Subsets(self.moves, units, within, int(count[steps]))
            for units, count in zip(self.halves, counts, strict=True)
        )
        self.most = max(self.most, one.count, other.count)
        if self._meet(one, other, within):
            # The plans within it are known; the others lose more.
            self.complete = self.best - self.bound.value <= within
            self.reached = max(self.reached, min(self.best, self.bound.value + within + 1))

    def _meet(self, one: Subsets, other: Subsets, gap: int) -> bool:
        """Look at all pairs of sets that may lie within the gap; False where there are too many."""
        # One of the two takes at most half of the gap.
        ours, theirs = (np.flatnonzero(half.cheap(gap // 2)) for half in (one, other))
        rest = np.flatnonzero(~one.cheap(gap // 2))
        windows = self._windows(gap)
        first = Pairs(one.cost[ours], other.cost[: other.count], self.left, windows)
        second = Pairs(other.cost[theirs], one.cost[rest], self.left, windows)
        if first.count + second.count > PAIRS:
            return False
        for asking, offered in first:
            self._keep(one, other, ours[asking], offered)
        for asking, offered in second:
            self._keep(one, other, rest[offered], theirs[asking])
        return True

    def _windows(self, gap: int) -> list[int]:
        """What a plan within the gap may leave of every limit, rounded up: λ times it is part of its distance from L."""
        bound = self.bound
        return [
            min((gap + 1) * bound.denominator // numerator, FAR) if numerator > 0 else FAR
            for numerator in bound.numerators
        ]

    def _keep(
        self, one: Subsets, other: Subsets, ours: Int64[ndarray, "pairs"], theirs: Int64[ndarray, "pairs"]
    ) -> None:
        """The first by (loss, costs, tie) of the leader and the pairs within the limits."""
        loss = one.loss[ours] + other.loss[theirs]
        good = np.flatnonzero(loss <= self.best - self.base_loss)
        cost = one.cost[ours[good]] + other.cost[theirs[good]]
        inside = (cost <= self.left).all(axis=1)
        good, cost = good[inside], cost[inside]
        if not len(good):
            return
        loss = loss[good]
        first = np.lexsort((*cost.T[::-1], loss))[0]
        alike = np.flatnonzero((loss == loss[first]) & (cost == cost[first]).all(axis=1))
        self.best = self.base_loss + int(loss[first])
        for place in good[alike].tolist():
            chosen = [*one.moves(int(ours[place])), *other.moves(int(theirs[place]))]
            key = (int(loss[first]), *cost[first].tolist(), self._tie(chosen))
            if self.leader is None or key < self.leader[0]:
                self.leader = key, chosen

    def _tie(self, chosen: list[int]) -> int:
        """What decides between plans of equal loss and costs, relative to the base plan."""
        ours, base = (tie_of(self.problem, self.tie, rows[chosen]) for rows in (self.moves.rows, self.moves.base))
        return ours - base
