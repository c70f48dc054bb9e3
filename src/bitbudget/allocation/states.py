"""Which states of the sweep another one matches or beats in every cost and in loss."""

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray

BLOCK = 64  # states compared with each other at once when there are two budgets
THRESHOLDS = 48  # how many partial orders look for dominated states when there are more
EARLIER = np.tri(BLOCK, k=-1, dtype=bool)  # of a block: the states before a state
LARGEST = np.iinfo(np.int64).max


def best_states(cost: Int64[ndarray, "states dimensions"], loss: Int64[ndarray, "states"]) -> Bool[ndarray, "states"]:
    """Mask of states that no earlier one is found to match or beat; sorted by costs, then loss.

    Up to two budgets: exact. More: a state is compared with those that lie below one of a few thresholds in the other costs.
    """
    if not len(loss):
        return np.zeros(0, bool)
    if cost.shape[1] == 0:
        return np.arange(len(loss)) == np.argmin(loss)
    if cost.shape[1] == 1:
        return _falls(loss)
    return _two(cost[:, 1], loss) if cost.shape[1] == 2 else _more(cost, loss)


def _falls(loss: Int64[ndarray, "states"]) -> Bool[ndarray, "states"]:
    before = np.concatenate([[LARGEST], np.minimum.accumulate(loss)[:-1]])
    return loss < before


def _two(second: Int64[ndarray, "states"], loss: Int64[ndarray, "states"]) -> Bool[ndarray, "states"]:
    """States by rising first cost, a block at a time, against the stairs that all earlier ones form in the second cost and
    loss, then against each other."""
    kept = np.zeros(len(loss), dtype=bool)
    stairs, heights = np.array([np.iinfo(np.int64).min]), np.array([LARGEST])
    for start in range(0, len(loss), BLOCK):
        cost, height = second[start : start + BLOCK], loss[start : start + BLOCK]
        below = np.flatnonzero(heights[np.searchsorted(stairs, cost, side="right") - 1] > height)
        cost, height = cost[below], height[below]
        matched = (cost[None, :] <= cost[:, None]) & (height[None, :] <= height[:, None])
        new = ~(matched & EARLIER[: len(cost), : len(cost)]).any(axis=1)
        kept[start + below[new]] = True
        if start + BLOCK >= len(loss):
            break  # nobody looks at the stairs any more
        stairs, heights = np.concatenate([stairs, cost[new]]), np.concatenate([heights, height[new]])
        order = np.lexsort((heights, stairs))
        stairs, heights = stairs[order], heights[order]
        steps = np.concatenate([[True], heights[1:] < np.minimum.accumulate(heights)[:-1]])
        stairs, heights = stairs[steps], heights[steps]
    return kept


def _more(cost: Int64[ndarray, "states dimensions"], loss: Int64[ndarray, "states"]) -> Bool[ndarray, "states"]:
    kept = ~np.concatenate([[False], (np.diff(cost, axis=0) == 0).all(axis=1)])
    for limits in _thresholds(cost):
        below = (cost[:, 1:] <= limits).all(axis=1)
        least = np.minimum.accumulate(np.where(below, loss, LARGEST))
        earlier = np.concatenate([[LARGEST], least[:-1]])
        beyond = (cost[:, 1:] >= limits).all(axis=1)
        kept &= ~(beyond & (earlier <= loss))
    return kept


def _thresholds(cost: Int64[ndarray, "states dimensions"]) -> list[Int64[ndarray, "others"]]:
    """Values of the costs beyond the first, at even ranks."""
    others = cost.shape[1] - 1
    count = min(max(round(THRESHOLDS ** (1 / others)), 2), len(cost))
    ranks = np.linspace(0, len(cost) - 1, count).astype(np.int64)
    grids = np.meshgrid(*(np.sort(cost[:, place])[ranks] for place in range(1, others + 1)), indexing="ij")
    return list(np.unique(np.stack([grid.ravel() for grid in grids], axis=1), axis=0))
