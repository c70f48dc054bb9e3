"""Which of many value vectors nothing else is at least as good as, in every value."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray

BLOCK = 1024  # rows compared at a time: the comparison needs BLOCK × rows × values bytes


def undominated(values: Sequence[tuple[int | float, ...]]) -> list[int]:
    """Indices, ascending, of the vectors that no other one matches or beats in all values; of equal ones the first."""
    order = sorted(range(len(values)), key=lambda index: (values[index], index))
    ranks = np.stack([_ranks([values[index][place] for index in order]) for place in range(len(values[0]))], axis=1)
    kept = undominated_rows(ranks)
    return sorted(order[position] for position in np.flatnonzero(kept))


def undominated_rows(values: Int64[ndarray, "rows values"]) -> Bool[ndarray, "rows"]:
    """Mask of the rows that no earlier row matches or beats everywhere; rows in lexicographic order."""
    kept = np.ones(len(values), dtype=bool)
    for start in range(0, len(values), BLOCK):
        stop = min(start + BLOCK, len(values))
        # In lexicographic order only an earlier row can dominate, and a dominated row's dominator is itself dominated by a
        # kept one: comparing with kept rows is enough.
        earlier = np.flatnonzero(kept[:start])
        block = values[start:stop]
        beaten = np.any(_matched(block, values[earlier]), axis=1)
        within = np.any(_matched(block, block) & _earlier(len(block)), axis=1)
        kept[start:stop] = ~(beaten | within)
    return kept


def _matched(
    values: Int64[ndarray, "rows values"], by: Int64[ndarray, "others values"]
) -> Bool[ndarray, "rows others"]:
    """Whether the other row is nowhere larger."""
    result = np.ones((len(values), len(by)), dtype=bool)
    for column, other in zip(values.T, by.T, strict=True):
        result &= other[None, :] <= column[:, None]
    return result


@cache
def _earlier(rows: int) -> Bool[ndarray, "rows rows"]:
    """Mask of the rows before a row. Blocks are as long as units have points, so there are few different ones."""
    return np.tri(rows, k=-1, dtype=bool)


def _ranks(column: Sequence[int | float]) -> Int64[ndarray, "rows"]:
    """Place of every value among the different ones: integers beyond 2^53 and floats compare as Python compares them."""
    place = {value: rank for rank, value in enumerate(sorted(set(column)))}
    return np.array([place[value] for value in column], dtype=np.int64)
