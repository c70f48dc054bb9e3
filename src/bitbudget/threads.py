"""Work on independent pieces of a tensor, one thread a piece.

Searching ranges and measuring errors are chains of small operations on a tile that fits the cache. Cut among threads, each of them
is over before the others have woken up; a thread that keeps a tile to itself waits for nobody. The results do not depend on how
many threads there are.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from bitbudget.heap import share_heap

MOST = 16  # threads; Python hands out their operations one at a time

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def mapped(work: Callable[[Piece], Result], pieces: Iterable[Piece], device: torch.device) -> list[Result]:
    """work(piece) of every piece, in their order; on an accelerator one after the other. An error of one piece ends those that have
    not begun, and is raised.
    """
    items, outer = list(pieces), torch.get_num_threads()
    workers = min(outer, MOST, len(items)) if device.type == "cpu" else 1
    if workers < 2:
        return [work(item) for item in items]
    share_heap()
    recording = torch.is_grad_enabled()  # every thread has a switch of its own

    def apart(item: Piece) -> Result:
        with torch.set_grad_enabled(recording):
            return work(item)

    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        return list(pool.map(apart, items))
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(outer)  # what a thread sets for itself would hold for all that begin later
