"""How the heap is told to give memory back, so that what a process holds is what its tensors take."""

import ctypes
import sys
from contextlib import suppress
from functools import cache

LARGE_BYTES = 4 << 20  # from here on a tensor has pages of its own, which go back to the system with it
TRIM_BYTES = 4 << 20  # free bytes at the heap's end that go back

# mallopt(3) of glibc. Its own limits grow up to 32 and 64 MiB with what a program frees.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8


def bound_heap() -> bool:
    """Hold the limits of this process's heap where they are; false where the system has no such words (no glibc)."""
    return _told(M_MMAP_THRESHOLD, LARGE_BYTES) and _told(M_TRIM_THRESHOLD, TRIM_BYTES)


@cache
def share_heap() -> None:
    """All threads take memory from one heap. glibc gives each a heap of its own, which keeps what a dead thread freed: every few
    large tensors would cost hundreds of MiB.
    """
    _told(M_ARENA_MAX, 1)


def _told(option: int, value: int) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    return mallopt is not None and bool(mallopt(option, value))


def return_freed_memory() -> None:
    """glibc keeps what was freed in pieces of up to 32 MiB, and what lies between them, for later: all of it would count in every
    later peak.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
