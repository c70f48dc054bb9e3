"""The highest point under some cuts: a linear program with a handful of variables.

    max θ    s.t.   θ ≤ height_i + λ·excess_i for every cut i,   low ≤ λ ≤ high

Its dual mixes cuts and meets the box where the mixture's excess does not vanish: one equation for the shares of the cuts, one
for every multiplier. The simplex method walks over bases of as many columns; a start is at hand. All of it is additions and
products in a fixed order, so that every machine finds the same digits, and a pivot takes microseconds.
"""

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

PIVOTS = 200
TOLERANCE = 1e-10


def highest(
    height: Float64[ndarray, "cuts"],
    excess: Float64[ndarray, "cuts dimensions"],
    low: Float64[ndarray, "dimensions"],
    high: Float64[ndarray, "dimensions"],
) -> tuple[float, Float64[ndarray, "dimensions"]]:
    """θ and λ; θ is never below the true maximum but by rounding, even where the pivots run out. low ≤ 0 ≤ high."""
    columns, price = _columns(height, excess, low, high)
    basis, inverse = _start(height, excess)
    for _ in range(PIVOTS):
        dual = _mixed(inverse, price[basis])
        reduced = price - _mixed(columns.T, dual)
        entering = int(np.argmin(reduced))
        if reduced[entering] >= -TOLERANCE:
            break
        direction = _mixed(inverse.T, columns[entering])
        falling = np.flatnonzero(direction > TOLERANCE)
        if not len(falling):
            break
        # The right side is 1 for the shares and 0 elsewhere, so that the first column of the inverse is the solution.
        leaving = int(falling[np.argmin(inverse[falling, 0] / direction[falling])])
        inverse[leaving] = inverse[leaving] / direction[leaving]
        for row in range(len(basis)):
            if row != leaving:
                inverse[row] = inverse[row] - direction[row] * inverse[leaving]
        basis[leaving] = entering
    dual = _mixed(inverse, price[basis])
    return float(dual[0]), np.clip(dual[1:], low, high)


def _columns(
    height: Float64[ndarray, "cuts"],
    excess: Float64[ndarray, "cuts dimensions"],
    low: Float64[ndarray, "dimensions"],
    high: Float64[ndarray, "dimensions"],
) -> tuple[Float64[ndarray, "columns rows"], Float64[ndarray, "columns"]]:
    """The dual's columns and their prices: cuts, upper sides of the box, lower sides."""
    sides = np.concatenate([np.eye(len(low)), -np.eye(len(low))])
    cuts = np.column_stack([np.ones(len(height)), -excess])
    columns = np.concatenate([cuts, np.column_stack([np.zeros(len(sides)), sides])])
    return columns, np.concatenate([height, high, -low])


def _start(
    height: Float64[ndarray, "cuts"], excess: Float64[ndarray, "cuts dimensions"]
) -> tuple[list[int], Float64[ndarray, "rows rows"]]:
    """The lowest cut with the sides of the box that its excess points to, and the inverse of that basis."""
    lowest = int(np.argmin(height))
    own = excess[lowest]
    upper = own >= 0
    cuts, dimensions = excess.shape
    basis = [lowest, *(cuts + place + (0 if upper[place] else dimensions) for place in range(dimensions))]
    sign = np.where(upper, 1.0, -1.0)
    inverse = np.zeros((dimensions + 1, dimensions + 1))
    inverse[0, 0] = 1.0
    inverse[1:, 0] = sign * own
    inverse[1:, 1:] = np.diag(sign)
    return basis, inverse


def _mixed(rows: Float64[ndarray, "rows columns"], weights: Float64[ndarray, "rows"]) -> Float64[ndarray, "columns"]:
    """Σ weight · row, added up in order."""
    total = np.zeros(rows.shape[1])
    for row, weight in zip(rows, weights.tolist(), strict=True):
        total = total + weight * row
    return total
