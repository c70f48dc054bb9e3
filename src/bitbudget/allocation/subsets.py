"""All sets of moves whose reduced costs add up to at most a gap: how many there are, and a list of them."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray

from bitbudget.allocation.moves import Moves

STEPS = 2**12  # into which a gap is cut to count sets


def counted(moves: Moves, units: Sequence[int], gap: int) -> Float64[ndarray, "steps"]:
    """At least as many as there are sets of moves of some units within every STEPS-th of the gap, the gap itself the last."""
    counts = np.zeros(STEPS + 1)
    counts[0] = 1.0
    for unit in units:
        with_unit = counts.copy()
        for above in moves.above[moves.own(unit)].tolist():
            step = above * STEPS // max(gap, 1)  # rounded down, so that a set never counts as dearer than it is
            if above <= gap:
                with_unit[step:] += counts[: STEPS + 1 - step]
        counts = with_unit
    return np.cumsum(counts)


class Subsets:
    """The sets of moves of some units, the empty one first: cost, loss relative to the base plan, sums of reduced costs.

    A set is one that stands earlier, its parent, with one move more.
    """

    def __init__(self, moves: Moves, units: Sequence[int], gap: int, most: int) -> None:
        """most: at least as many as there are, from `counted`."""
        self.cost = np.zeros((most, moves.cost.shape[1]), np.int64)
        self.loss = np.zeros(most, np.int64)
        self.above = np.zeros(most, np.int64)
        self._parent = np.zeros(most, np.int32)
        self._move = np.full(most, -1, np.int32)
        self.count = 1
        # Units that hardly move first, so that the list is short for most of them.
        for unit in reversed(units):
            before = self.count
            for move in moves.own(unit):
                self._add(moves, move, np.flatnonzero(self.above[:before] <= gap - moves.above[move]))

    def _add(self, moves: Moves, move: int, parents: Int64[ndarray, "parents"]) -> None:
        """Sets that are there already, each with one move more."""
        new = slice(self.count, self.count + len(parents))
        self.cost[new] = self.cost[parents] + moves.cost[move]
        self.loss[new] = self.loss[parents] + moves.loss[move]
        self.above[new] = self.above[parents] + moves.above[move]
        self._parent[new] = parents
        self._move[new] = move
        self.count = new.stop

    def cheap(self, gap: int) -> Bool[ndarray, "sets"]:
        """Mask of the sets whose reduced costs add up to at most a gap."""
        return self.above[: self.count] <= gap

    def moves(self, place: int) -> list[int]:
        """The moves of a set."""
        found = []
        while (move := int(self._move[place])) >= 0:
            found.append(move)
            place = int(self._parent[place])
        return found
