"""Closed forms for losses that fall by a fixed factor per bit: where bits should go, and what mixing can bring at all.

A unit of n_u weights that loses C_u·2^(−θR) at R bits per weight: the best plan of a given size loses the same per weight
everywhere,

    R_u = R̄ + (1/θ)·log2( (C_u/n_u) / GM ),    loss / loss of uniform bits = GM / AM,

with geometric and arithmetic means of C_u/n_u weighted by n_u (reverse water-filling; for the columns of a matrix with
θ = 2 in BAQ: Zhang et al., 2025, arXiv 2506.05664, whose code measured θ = 1.95).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from bitbudget.allocation.units import Point, Unit
from bitbudget.errors import BudgetError, InputError


def equal_loss_bits(
    sensitivities: Sequence[float],
    sizes: Sequence[int],
    mean_bits: float,
    least: float = 0.0,
    most: float = 16.0,
    decay: float = 2.0,
) -> list[float]:
    """Bits per weight of every unit, between `least` and `most`, whose mean over all weights is exactly `mean_bits`.

    sensitivities: C_u ≥ 0; a dead unit (0) gets `least` and takes no part in the means. decay: θ.

    Raises:
        BudgetError: the mean lies outside the limits. InputError: sizes or sensitivities below their range.
    """
    size, wanted, alive = _logarithms(sensitivities, sizes)
    if not least <= mean_bits <= most:
        raise BudgetError(f"{mean_bits} bits a weight cannot be the mean of units with {least} to {most} bits each.")
    bits = np.full(len(size), least)
    room = mean_bits * size.sum() - least * size[~alive].sum()
    if not alive.any() or room >= most * size[alive].sum():
        # Dead units take what the others cannot.
        rest = room - most * size[alive].sum() if alive.any() else room
        bits[alive] = most
        bits[~alive] = least + rest / size[~alive].sum() if (~alive).any() else least
        return [float(value) for value in bits]
    offset = wanted[alive] / decay
    bits[alive] = np.clip(_level(offset, size[alive], room, least, most) + offset, least, most)
    return [float(value) for value in bits]


def mixing_gain(sensitivities: Sequence[float], sizes: Sequence[int]) -> float:
    """Loss of the best mix over the loss of uniform bits of the same size, without limits on bits: GM / AM, at most 1."""
    size, logarithm, alive = _logarithms(sensitivities, sizes)
    if not alive.any():
        return 1.0
    weight = size[alive] / size[alive].sum()
    logs = logarithm[alive]
    top = float(logs.max())  # keeps the powers within range
    return float(2.0 ** (float(weight @ logs) - top) / float(weight @ 2.0 ** (logs - top)))


def nearest_points(units: Sequence[Unit], wanted: Mapping[str, float], place: int = 0) -> dict[str, Point]:
    """For every unit the point nearest below a wanted cost, else its cheapest: a plan to begin `solve` from."""
    return {unit.name: _nearest(unit.points, wanted[unit.name], place) for unit in units}


def _nearest(points: Sequence[Point], wanted: float, place: int) -> Point:
    below = [point for point in points if point.cost[place] <= wanted]
    if below:
        return max(below, key=lambda point: (point.cost[place], -point.score))
    return min(points, key=lambda point: (point.cost[place], point.score))


def _level(
    offset: Float64[ndarray, "units"], size: Float64[ndarray, "units"], room: float, least: float, most: float
) -> float:
    """The level a with Σ size·clip(a + offset, least, most) = room: exact, since that sum is linear between the levels at
    which a unit leaves or meets a limit."""
    levels = np.unique(np.concatenate([least - offset, most - offset]))
    filled = np.array([float(size @ np.clip(level + offset, least, most)) for level in levels])
    after = int(np.searchsorted(filled, room))
    if after == 0:
        return float(levels[0])
    span = filled[after] - filled[after - 1]
    share = (room - filled[after - 1]) / span if span > 0 else 0.0
    return float(levels[after - 1] + share * (levels[after] - levels[after - 1]))


def _logarithms(
    sensitivities: Sequence[float], sizes: Sequence[int]
) -> tuple[Float64[ndarray, "units"], Float64[ndarray, "units"], "np.ndarray"]:
    """Sizes, log2(C_u / n_u) (0 where dead), and which units are alive."""
    size = np.array(sizes, dtype=np.float64)
    sensitivity = np.array(sensitivities, dtype=np.float64)
    sound = len(size) == len(sensitivity) > 0 and np.isfinite([size, sensitivity]).all()
    if not sound or (size <= 0).any() or (sensitivity < 0).any():
        raise InputError("Water-filling needs a size above 0 and a finite sensitivity of at least 0 for every unit.")
    alive = sensitivity > 0
    return size, np.log2(np.where(alive, sensitivity, 1.0) / np.where(alive, size, 1.0)), alive
