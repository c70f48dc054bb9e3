"""Buffers that hold bytes of a weight: they follow their module's device, never its dtype. And how they are let go."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from bitbudget.kernels.extension import extension

MAPS = Path("/proc/self/maps")
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


def read_all(tensor: Tensor) -> None:
    """Read every byte of a contiguous tensor once, with torch's threads, as fast as memory gives them."""
    compiled = extension()
    if compiled is None:
        tensor.view(torch.int64).sum()
    else:
        compiled.read(tensor.data_ptr(), tensor.nbytes, torch.get_num_threads())
