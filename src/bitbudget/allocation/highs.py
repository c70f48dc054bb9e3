"""HiGHS writes some lines straight to the process's standard output, whatever it is told; they would land in a command's result."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silent() -> Iterator[None]:
    """Keeps the process's standard output free of a line that HiGHS prints from C++ whatever its options say."""
    library = ctypes.CDLL(None) if os.name == "posix" else ctypes.CDLL("msvcrt")
    sys.stdout.flush()
    library.fflush(None)
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        library.fflush(None)  # what C still holds back belongs to HiGHS
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
