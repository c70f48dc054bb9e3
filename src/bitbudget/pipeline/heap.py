"""How the heap is told to give memory back, so that what a process holds is what its tensors take."""

import ctypes
import sys
from contextlib import suppress

LARGE_BYTES = 4 << 20  # from here on a tensor has pages of its own, which go back to the system with it
TRIM_BYTES = 4 << 20  # free bytes at the heap's end that go back

# mallopt(3) of glibc. Its own limits grow up to 32 and 64 MiB with what a program frees.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def bound_heap() -> bool:
    """Hold the limits of this process's heap where they are; false where the system has no such words (no glibc)."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(
        mallopt(M_MMAP_THRESHOLD, LARGE_BYTES) and mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)
    )


def return_freed_memory() -> None:
    """glibc keeps what was freed in pieces of up to 32 MiB, and what lies between them, for later: all of it would count in every
    later peak.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
