"""Buffers that hold bytes of a weight: they follow their module's device, never its dtype. And how they are let go."""

import mmap
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor, nn

from bitbudget.kernels.extension import extension

MAPS = Path("/proc/self/maps")
LARGE_PAGE = 2 << 20
RUN_BYTES = 256 << 20  # of large pages that are taken at once
SHARED_BYTES = 64 << 10  # from this size on, packed bytes share large pages
Range = tuple[int, int]


class StoredTensors(nn.Module):
    """The tensors of one part. They follow the module's device, never its dtype: scales must not be rounded again."""

    def __init__(self) -> None:
        super().__init__()

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        for name, tensor in self._buffers.items():
            if tensor is not None:
                moved = fn(tensor)
                self._buffers[name] = moved if moved.dtype == tensor.dtype else tensor.to(moved.device)
        return self

    def release(self, mapped: Sequence[Range] = ()) -> None:
        """Let go of the tensors. mapped: addresses at which files are; their pages go back to the system."""
        for name, tensor in self._buffers.items():
            if tensor is not None:
                _forget_pages(tensor, mapped)
            self._buffers[name] = None


def mapped_files() -> tuple[Range, ...]:
    """Addresses at which this process has files in its memory; none where the system does not tell.

    A checkpoint's tensors are read in place: as long as one of a file's tensors lives, the pages of all stay.
    """
    if not MAPS.is_file():
        return ()
    ranges = []
    for line in MAPS.read_text("utf-8", errors="replace").splitlines():
        words = line.split(maxsplit=5)  # addresses, permissions, offset, device, inode, file
        if len(words) == 6 and words[1][3] == "p" and words[5].endswith(".safetensors"):
            begin, _, end = words[0].partition("-")
            ranges.append((int(begin, 16), int(end, 16)))
    return tuple(ranges)


def _forget_pages(tensor: Tensor, mapped: Sequence[Range]) -> None:
    """The pages are read from the file again if somebody else still asks for them."""
    compiled = extension()
    if compiled is None or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return
    begin, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    if any(first <= begin and end <= last for first, last in mapped):
        compiled.forget_pages(begin, tensor.nbytes)


def empty_bytes(count: int) -> Tensor:
    """Bytes on the CPU; torch aligns every allocation to 64 bytes, as the kernels want it."""
    return torch.empty(count, dtype=torch.uint8)


class LargePages:
    """Memory that weights lie in one behind the other, so that a page which one does not fill begins the next.

    A page takes memory when it is written to; what is not used yet takes none. What dies gives its whole pages back.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._pages: mmap.mmap | None = None
        self._rest = memoryview(b"")

    def take(self, count: int) -> Tensor:
        """So many bytes."""
        whole = -(-count // mmap.PAGESIZE) * mmap.PAGESIZE
        with self._lock:
            if len(self._rest) < whole:
                self._pages, self._rest = _large_pages(max(whole, RUN_BYTES))
            pages, mine = self._pages, self._rest[:whole]
            self._rest = self._rest[whole:]
        tensor = torch.frombuffer(mine, dtype=torch.uint8, count=count)  # which keeps `mine`, as long as anything shares its memory
        compiled = extension()
        if compiled is not None:  # the pages of others are in the same mapping, which therefore has to live that long
            end = weakref.finalize(mine, lambda _, *where: compiled.forget_pages(*where), pages, tensor.data_ptr(), whole)
            end.atexit = False
        return tensor


def _large_pages(count: int) -> tuple[mmap.mmap, memoryview]:
    """Fresh memory of at least so many bytes that begins with a large page, and the mapping that it is in."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    pages = mmap.mmap(-1, count + LARGE_PAGE, flags=flags)
    begin = -torch.frombuffer(pages, dtype=torch.uint8).data_ptr() % LARGE_PAGE
    with suppress(OSError):  # a kernel without large pages
        pages.madvise(mmap.MADV_HUGEPAGE, begin, count // LARGE_PAGE * LARGE_PAGE)
    return pages, memoryview(pages)[begin : begin + count]


_weights = LargePages()


def empty_weight(count: int) -> Tensor:
    """The same for a packed weight. It is read from end to end at every product: in large pages, where there are any, so that one
    address is translated in place of 512, and the processor goes on fetching where a small page ends.
    """
    if count < SHARED_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return empty_bytes(count)
    try:
        return _weights.take(count)
    except OSError:  # no address space for so many pages at once
        return empty_bytes(count)


def read_all(tensor: Tensor, side_by_side: bool) -> None:
    """Read every byte of a contiguous tensor once, with torch's threads. side_by_side: every thread eight parts of it at once."""
    compiled = extension()
    if compiled is None:
        tensor.view(torch.int64).sum()
    else:
        compiled.read(tensor.data_ptr(), tensor.nbytes, torch.get_num_threads(), side_by_side)
