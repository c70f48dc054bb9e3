"""What the moves that are still to come must add to a state of the sweep.

A state has left the base plan by some moves; r is what it leaves of the limits, below 0 where it exceeds them. Moves of later
units, with reduced costs a_m ≥ 0 and costs c_m, complete it to a plan. For every shift δ ≥ −λ of the multipliers that plan
lies above L(λ), beyond the state's own reduced costs, by at least

    K(δ) − δ·r,    K(δ) = Σ_later units min(0, min_m a_m + δ·c_m),

which is L(λ + δ) of what is left to decide. Shifts are taken along a few directions, δ = t·w; along each the best t follows
from r by a search among the corners of a concave function. Any t is valid, and all rounding goes downwards.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

SHIFTS = 64  # values of t along a direction
ROUNDING = 2.0**-46  # more than the relative error of the operations on one number
MOST = 2.0**60


@dataclass(frozen=True)
class _Direction:
    """One direction: its shifts, rising, K of every shift before every stage, and the r·w between neighbouring shifts."""

    weights: Float64[ndarray, "dimensions"]
    shifts: Float64[ndarray, "shifts"]
    later: Float64[ndarray, "stages shifts"]
    turns: Float64[ndarray, "stages turns"]

    def least(self, left: Int64[ndarray, "states dimensions"], stage: int) -> Float64[ndarray, "states"]:
        """K − δ·r, less what rounding may have added."""
        along, size = np.zeros(len(left)), np.zeros(len(left))
        for dimension, weight in enumerate(self.weights.tolist()):
            part = left[:, dimension] * weight
            along, size = along + part, size + np.abs(part)
        # Turns fall from shift to shift: the larger r, the lower the multiplier that bounds best.
        place = np.searchsorted(-self.turns[stage], -along)
        shift, later = self.shifts[place], self.later[stage][place]
        return later - shift * along - ROUNDING * (np.abs(shift) * size - later)


class Completion:
    """The bound for all stages of a sweep; moves are grouped by unit, `starts` are the first of each."""

    def __init__(
        self,
        above: Int64[ndarray, "moves"],
        cost: Int64[ndarray, "moves dimensions"],
        starts: Int64[ndarray, "units"],
        multipliers: tuple[float, ...],
    ) -> None:
        self.directions: list[_Direction] = []
        if not len(starts) or not multipliers:
            return
        mean = (np.abs(cost) // len(cost)).sum(axis=0)  # in integers that cannot overflow, alike on every machine
        unit = 1.0 / np.maximum(mean, 1).astype(np.float64)
        for weights in _directions(len(multipliers)):
            made = _direction(above.astype(np.float64), cost, starts, np.array(multipliers), weights * unit)
            if made is not None:
                self.directions.append(made)

    def least(self, left: Int64[ndarray, "states dimensions"], stage: int) -> Int64[ndarray, "states"]:
        """What completing a state adds at least; `left` is what it leaves of the limits before `stage`."""
        most = np.zeros(len(left))
        for direction in self.directions:
            most = np.maximum(most, direction.least(left, stage))
        return np.floor(np.minimum(most, MOST)).astype(np.int64)


def _directions(dimensions: int) -> list[Float64[ndarray, "dimensions"]]:
    """The axes, and for every pair of them sums and differences."""
    axes = np.eye(dimensions)
    mixed = [
        first * axes[one] + second * axes[other]
        for one, other in combinations(range(dimensions), 2)
        for first, second in ((1.0, 1.0), (1.0, -1.0), (2.0, 1.0), (1.0, 2.0), (2.0, -1.0), (1.0, -2.0))
    ]
    return [*axes, *mixed]


def _direction(
    above: Float64[ndarray, "moves"],
    cost: Int64[ndarray, "moves dimensions"],
    starts: Int64[ndarray, "units"],
    multipliers: Float64[ndarray, "dimensions"],
    weights: Float64[ndarray, "dimensions"],
) -> _Direction | None:
    """Shifts at even ranks among those at which a move begins to pay, from the lowest to the highest allowed."""
    along, size = np.zeros(len(above)), np.zeros(len(above))
    for dimension, weight in enumerate(weights.tolist()):
        along, size = along + cost[:, dimension] * weight, size + np.abs(cost[:, dimension] * weight)
    rising, falling = weights > 0, weights < 0
    lowest = float(np.max(-multipliers[rising] / weights[rising], initial=-np.inf))
    highest = float(np.min(-multipliers[falling] / weights[falling], initial=np.inf))
    moving = along != 0
    pays = np.unique(-above[moving] / along[moving])
    ends = [end for end in (lowest, highest) if np.isfinite(end)]
    pays = np.unique(np.concatenate([pays[(pays >= lowest) & (pays <= highest)], ends, [0.0]]))
    shifts = pays[np.unique(np.linspace(0, len(pays) - 1, SHIFTS).astype(np.int64))]
    if len(shifts) < 2:
        return None
    later = np.zeros((len(starts) + 1, len(shifts)))
    for place, shift in enumerate(shifts.tolist()):
        least = np.minimum(np.minimum.reduceat(above + shift * along, starts), 0.0)
        error = ROUNDING * np.maximum.reduceat(above + abs(shift) * size, starts)
        later[:-1, place] = np.cumsum((least - error)[::-1])[::-1]
    turns = np.diff(later, axis=1) / np.diff(shifts)
    return _Direction(weights, shifts, later, np.minimum.accumulate(turns, axis=1))
