"""What layers make of the activations that they receive, shared by those that receive the same tensor."""

import weakref
from collections.abc import Callable

import torch
from torch import Tensor

from bitbudget.kernels.extension import compiled

ACTIVATIONS = ("a8", "a16")  # numbered as in cpu/kernels.h
RUN_IN = (torch.float32, torch.bfloat16, torch.float16)  # dtypes of activations; they are quantized from fp32


class Inputs:
    """What layers make of one tensor [..., columns]: rows in fp32, and quantized each way once.

    quantized: the extension's, filled by the products that take it.
    """

    __slots__ = ("_rows", "quantized", "tensor", "version")

    def __init__(self, x: Tensor, died: "Callable[[weakref.ref[Tensor]], None] | None" = None) -> None:
        self.tensor = weakref.ref(x, died)
        self.version = -1 if x.is_inference() else x._version
        self.quantized = compiled().Inputs()
        self._rows: Tensor | None = None

    def rows(self, x: Tensor) -> Tensor:
        """Of this tensor, as `rows_of` gives them. What shares its memory is not kept: it would keep the tensor itself."""
        if self._rows is not None:
            return self._rows
        rows = rows_of(x)
        if rows.data_ptr() != x.data_ptr():
            self._rows = rows
        return rows


class SharedInputs:
    """Remembers what was made of the last tensor, so that q, k and v, or gate and up, share it.

    A tensor is recognized by being the same object, unchanged since: torch counts changes in place, except of tensors made
    in inference mode, which are therefore not shared. The memory is given back when the tensor dies.
    """

    def __init__(self) -> None:
        self._last: Inputs | None = None

    def __reduce__(self) -> tuple[type["SharedInputs"], tuple[()]]:
        return SharedInputs, ()  # a copy of a model has its own

    def get(self, x: Tensor) -> Inputs:
        """x: [..., columns] as a layer receives it."""
        last = self._last
        if last is not None and last.tensor() is x and last.version == x._version:
            return last
        if x.is_inference():
            return Inputs(x)
        last = self._last = Inputs(x, self._forget)
        return last

    def _forget(self, dead: "weakref.ref[Tensor]") -> None:
        last = self._last
        if last is not None and last.tensor is dead:
            self._last = None


def rows_of(x: Tensor) -> Tensor:
    """x [..., columns] as fp32 [n, columns]: columns next to one another, rows any distance apart."""
    rows = x.reshape(-1, x.shape[-1]).float()
    return rows if rows.stride(1) == 1 and rows.stride(0) >= rows.shape[1] else rows.contiguous()


def extent(rows: Tensor) -> int:
    """Bytes from the first to the last element of rows."""
    count, columns = rows.shape
    return rows.element_size() * ((count - 1) * rows.stride(0) + columns) if count else 0
