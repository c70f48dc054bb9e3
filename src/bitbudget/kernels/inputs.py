"""Activations quantized for the CPU kernels, and shared by the layers that receive the same tensor."""

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from bitbudget.kernels.extension import compiled
from bitbudget.kernels.tensors import empty_bytes

ACTIVATIONS = ("a8", "a16")  # numbered as in cpu/kernels.h
RUN_IN = (torch.float32, torch.bfloat16, torch.float16)  # dtypes of activations; they are quantized from fp32


@dataclass(frozen=True)
class InputFormat:
    """For an instruction set by number: columns of a token, columns of a group, number of the activation format."""

    isa: int
    columns: int
    group: int
    activations: int


@dataclass(frozen=True)
class QuantizedInputs:
    """Codes, scales and sums of groups of `count` tokens, as the kernels of one instruction set want them."""

    format: InputFormat
    count: int
    data: Tensor

    @classmethod
    def of(cls, x: Tensor, format: InputFormat) -> "QuantizedInputs":
        """x: [n, columns] as `rows_of` gives them."""
        isa, columns, group, count = format.isa, format.columns, format.group, x.shape[0]
        module = compiled()
        data = empty_bytes(module.inputs_size(isa, count, columns, group, format.activations))
        module.quantize_inputs(
            isa, x.data_ptr(), extent(x), count, x.stride(0), columns, group, format.activations, data.data_ptr(),
            data.nbytes, torch.get_num_threads(),
        )  # fmt: skip
        return cls(format, count, data)


class SharedInputs:
    """Remembers how the last tensor was quantized, so that q, k and v, or gate and up, do it once.

    A tensor is recognized by being the same object, unchanged since: torch counts changes in place, except of tensors made
    in inference mode, which are therefore not shared. The memory is given back when the tensor dies.
    """

    def __init__(self) -> None:
        self._last: tuple[weakref.ref[Tensor], int, dict[InputFormat, QuantizedInputs]] | None = None

    def __reduce__(self) -> tuple[type["SharedInputs"], tuple[()]]:
        return SharedInputs, ()  # a copy of a model has its own

    def get(self, x: Tensor, format: InputFormat) -> QuantizedInputs:
        """x: [..., columns] as a layer receives it."""
        if x.is_inference():
            return QuantizedInputs.of(rows_of(x), format)
        last = self._last
        if last is None or last[0]() is not x or last[1] != x._version:
            last = self._last = (weakref.ref(x, self._forget), x._version, {})
        if format not in last[2]:
            last[2][format] = QuantizedInputs.of(rows_of(x), format)
        return last[2][format]

    def _forget(self, dead: "weakref.ref[Tensor]") -> None:
        last = self._last
        if last is not None and last[0] is dead:
            self._last = None


def rows_of(x: Tensor) -> Tensor:
    """x [..., columns] as fp32 [n, columns]: columns next to one another, rows any distance apart."""
    rows = x.reshape(-1, x.shape[-1]).float()
    return rows if rows.stride(1) == 1 and rows.stride(0) >= rows.shape[1] else rows.contiguous()


def extent(rows: Tensor) -> int:
    """Bytes from the first to the last element of rows."""
    count, columns = rows.shape
    return rows.element_size() * ((count - 1) * rows.stride(0) + columns) if count else 0
