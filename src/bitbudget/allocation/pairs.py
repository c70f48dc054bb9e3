"""Pairs of cost vectors that fill the limits nearly: a join on the two dimensions that say most."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

CHUNK = 2**18  # pairs at a time
SLICES = 64  # of a window in the dimension by which vectors are sorted within a cell
MOST_CELLS = 2**20  # in either dimension

Runs = tuple[Int64[ndarray, "asked"], Int64[ndarray, "asked"]]  # first partner in the order of keys, number of partners


class Pairs:
    """Places of the pairs whose sums leave between 0 and a window of the limits in two dimensions, and some more; in pieces.

    The offered vectors are sorted by cells of one dimension, and within a cell by slices of another: every asked one has a run of
    partners in each of two cells.
    """

    def __init__(
        self,
        asked: Int64[ndarray, "asked dimensions"],
        offered: Int64[ndarray, "offered dimensions"],
        left: Int64[ndarray, "dimensions"],
        windows: Sequence[int],
    ) -> None:
        self.rows = np.zeros(0, np.int64)
        self.runs: list[Runs] = []
        if not len(offered):
            return
        least = offered.min(axis=0)
        span = offered.max(axis=0) - least
        most = left - asked - least
        self.rows = np.flatnonzero((most >= 0).all(axis=1))
        most = most[self.rows]
        low = np.maximum(most - np.array(windows), 0)
        most = np.minimum(most, span)
        inside = (low <= most).all(axis=1)
        self.rows, low, most = self.rows[inside], low[inside], most[inside]
        narrow = sorted(range(len(windows)), key=lambda place: (windows[place] + 1) / (int(span[place]) + 1))
        cell, slice_ = narrow[0], narrow[min(1, len(narrow) - 1)]
        # A cell is wider than a window, which so lies in at most two of them.
        width = max(min(windows[cell], int(span[cell])), int(span[cell]) // MOST_CELLS) + 1
        height = max(windows[slice_] // SLICES, int(span[slice_]) // (MOST_CELLS * SLICES)) + 1
        stride = int(span[slice_]) // height + 1
        key = (offered[:, cell] - least[cell]) // width * stride + (offered[:, slice_] - least[slice_]) // height
        self.order = np.argsort(key, kind="stable")
        key = key[self.order]
        first, last = low[:, cell] // width * stride, most[:, cell] // width * stride
        self.runs = [_runs(key, at, low[:, slice_] // height, most[:, slice_] // height) for at in (first, last)]
        self.runs[1][1][first == last] = 0

    @property
    def count(self) -> int:
        return sum(int(length.sum()) for _, length in self.runs)

    def __iter__(self) -> Iterator[tuple[Int64[ndarray, "pairs"], Int64[ndarray, "pairs"]]]:
        for first, length in self.runs:
            ends = np.cumsum(length)
            start = 0
            while start < len(ends):
                before = int(ends[start - 1]) if start else 0
                stop = max(int(np.searchsorted(ends, before + CHUNK, side="right")), start + 1)
                own = length[start:stop]
                skipped = np.repeat(first[start:stop] - (ends[start:stop] - own), own)
                partners = self.order[np.arange(before, int(ends[stop - 1])) + skipped]
                yield np.repeat(self.rows[start:stop], own), partners
                start = stop


def _runs(
    key: Int64[ndarray, "offered"],
    cell: Int64[ndarray, "asked"],
    low: Int64[ndarray, "asked"],
    high: Int64[ndarray, "asked"],
) -> Runs:
    """Where the partners in one cell begin, and how many they are."""
    first = np.searchsorted(key, cell + low, side="left")
    return first, np.searchsorted(key, cell + high, side="right") - first
