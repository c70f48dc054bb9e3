"""Activations quantized for the CPU kernels, and shared by the layers that receive the same tensor."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bitbudget.kernels.extension import compiled
from bitbudget.kernels.tensors import empty_bytes

ACTIVATIONS = ("a8", "a16")  # numbered as in cpu/kernels.h
RUN_IN = (torch.float32, torch.bfloat16, torch.float16)  # dtypes of activations; they are quantized from fp32


class InputFormat(NamedTuple):  # a tuple, because it is looked up at every product
    """For an instruction set by number: columns of a token, columns of a group, number of the activation format."""

    isa: int
    columns: int
    group: int
    activations: int


@dataclass(slots=True)
class QuantizedInputs:
    """Codes, scales and sums of groups of `count` tokens, as the kernels of one instruction set want them."""

    format: InputFormat
    count: int
    data: Tensor

    @classmethod
    def of(cls, x: Tensor, format: InputFormat) -> "QuantizedInputs":
        """x: [n, columns] as `rows_of` gives them."""
        isa, columns, group, activations = format
        module, count = compiled(), x.shape[0]
        data = empty_bytes(module.inputs_size(isa, count, columns, group, activations))
        module.quantize_inputs(
            isa, x.data_ptr(), extent(x), count, x.stride(0), columns, group, activations, data.data_ptr(), data.nbytes,
            torch.get_num_threads(),
        )  # fmt: skip
        return cls(format, count, data)


class Inputs:
    """What layers make of one tensor [..., columns] that they receive: rows in fp32, quantized each way once."""

    __slots__ = ("_quantized", "_rows", "tensor", "version")

    def __init__(self, x: Tensor, died: "Callable[[weakref.ref[Tensor]], None] | None" = None) -> None:
        self.tensor = weakref.ref(x, died)
        self.version = -1 if x.is_inference() else x._version
        self._rows: Tensor | None = None
        self._quantized: dict[InputFormat, QuantizedInputs] = {}

    def rows(self, x: Tensor) -> Tensor:
        """Of this tensor, as `rows_of` gives them. What shares its memory is not kept: it would keep the tensor itself."""
        if self._rows is not None:
            return self._rows
        rows = rows_of(x)
        if rows.data_ptr() != x.data_ptr():
            self._rows = rows
        return rows

    def quantized(self, x: Tensor, format: InputFormat) -> QuantizedInputs:
        """Of this tensor."""
        found = self._quantized.get(format)
        if found is None:
            found = self._quantized[format] = QuantizedInputs.of(self.rows(x), format)
        return found


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
        if x.is_inference():
            return Inputs(x)
        last = self._last
        if last is None or last.tensor() is not x or last.version != x._version:
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
