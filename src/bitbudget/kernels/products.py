"""The CPU kernels' functions on tensors. Sizes are checked by the extension; dtypes and places by who makes the tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from bitbudget.kernels.extension import compiled
from bitbudget.kernels.inputs import Inputs, extent
from bitbudget.kernels.tensors import empty_weight

TILE_ROWS, LINE_BYTES, BLOCK_COLUMNS, LARGEST_GROUP = 16, 64, 32, 65536  # of cpu/layout.h
LARGEST_COLUMNS = 65536  # that packed outliers can be in
OUTLIERS_SPARE_BYTES = 4 * LINE_BYTES  # of packed outliers, beside pointers, columns and values, at most
WIDTHS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True)
class CodeLayout:
    """Codes of some rows, packed for an instruction set by number.

    parameters: the number of the format that holds scales and zeros (`Parameters` of cpu/kernels.h).
    """

    isa: int
    rows: int
    columns: int
    group: int
    bits: int
    parameters: int

    @cached_property
    def arguments(self) -> tuple[int, int, int, int, int, int]:
        """As the extension's functions begin."""
        return self.isa, self.rows, self.columns, self.group, self.bits, self.parameters

    @property
    def table(self) -> tuple[int, int]:
        """Shape of scales and zeros."""
        return self.rows, -(-self.columns // self.group)

    # As cpu/layout.h says it, so that plans can count packed bytes where there is no extension.
    @property
    def padded(self) -> int:
        """Columns that a group takes."""
        return -(-min(self.group, self.columns) // BLOCK_COLUMNS) * BLOCK_COLUMNS

    @property
    def nbytes(self) -> int:
        """Bytes of the packed codes, scales and zeros."""
        groups = self.table[1]
        tile = groups * TILE_ROWS * (self.padded * self.bits // 8 + (4 if self.parameters else 8))
        return -(-self.rows // TILE_ROWS) * tile

    @property
    def exists(self) -> bool:
        """Whether there is a kernel for it."""
        return self.bits in WIDTHS and min(self.rows, self.columns, self.group) > 0 and self.padded <= LARGEST_GROUP


def exact_parameters(scale: Tensor, zero: Tensor) -> int:
    """The smallest format of parameters that holds these, fp32 and contiguous, exactly."""
    return int(compiled().exact_parameters(scale.data_ptr(), zero.data_ptr(), scale.nbytes))


def pack(layout: CodeLayout, codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Packed bytes of a bit stream of codes, int32 [rows, words], scales and zeros, fp32 [rows, groups]."""
    packed = empty_weight(layout.nbytes)
    compiled().pack(
        *layout.arguments, *_address(codes), scale.data_ptr(), zero.data_ptr(), scale.nbytes, *_address(packed),
        torch.get_num_threads(),
    )  # fmt: skip
    return packed


def unpack(layout: CodeLayout, packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The exact inverse of `pack`: codes, scales, zeros."""
    codes = torch.empty(layout.rows, -(-layout.columns * layout.bits // 32), dtype=torch.int32)
    scale, zero = torch.empty(layout.table), torch.empty(layout.table)
    compiled().unpack(
        *layout.arguments, *_address(packed), *_address(codes), scale.data_ptr(), zero.data_ptr(), scale.nbytes,
        torch.get_num_threads(),
    )  # fmt: skip
    return codes, scale, zero


def lookup(layout: CodeLayout, packed: Tensor, rows: Tensor) -> Tensor:
    """Decoded rows [n, columns], fp32, of some rows, int64. Raises ValueError for rows that there are not."""
    values = torch.empty(len(rows), layout.columns)
    compiled().lookup(
        *layout.arguments, *_address(packed), *_address(rows.contiguous()), *_address(values), torch.get_num_threads()
    )
    return values


class PackedPart(NamedTuple):
    """Codes of some rows as `pack` makes them. order: the output of each row, int32, or None for its own number. sparse: outliers
    of the rows, packed.
    """

    layout: CodeLayout
    packed: Tensor
    order: Tensor | None
    sparse: Tensor | None


class Weight:
    """All dense parts of a weight of so many outputs, ready to multiply: sizes and places are checked once, here."""

    __slots__ = ("_made", "_multiply")

    def __init__(self, parts: Sequence[PackedPart], outputs: int) -> None:
        self._made = parts, outputs  # the tensors have to live as long as their addresses are kept
        weight = compiled().Weight(parts[0].layout.isa, parts[0].layout.columns, outputs)
        for layout, packed, order, sparse in parts:
            shape = layout.rows, layout.group, layout.bits, layout.parameters
            weight.add(*shape, *_address(packed), *_address(order), *_address(sparse))
        self._multiply = weight.multiply

    def __reduce__(self) -> tuple[type["Weight"], tuple[Sequence[PackedPart], int]]:
        return Weight, self._made  # a copy has addresses of its own

    def multiply(self, x: Tensor, inputs: Inputs, activations: int, bias: Tensor | None, y: Tensor) -> None:
        """Writes x Ŵᵀ + bias to y.

        x: [..., in]. inputs: of x. activations: the number of their format. bias: fp32 [outputs], contiguous, or None. y: fp32
        [..., outputs], contiguous.
        """
        if x.dtype is torch.float32 and x.is_contiguous():
            columns = x.shape[-1]
            place = x.data_ptr(), x.nbytes, x.numel() // columns, columns
        else:
            rows = inputs.rows(x)  # held here, for another thread may exchange those that `inputs` holds
            place = rows.data_ptr(), extent(rows), len(rows), rows.stride(0)
        bias_at, bias_bytes = (0, 0) if bias is None else (bias.data_ptr(), bias.nbytes)
        self._multiply(
            inputs.quantized, *place, activations, bias_at, bias_bytes, y.data_ptr(), y.nbytes, torch.get_num_threads()
        )


def pack_outliers(row_pointers: Tensor, columns: Tensor, values: Tensor) -> Tensor | None:
    """A sparse matrix (int32, int32, fp32) packed for `multiply`; None if it cannot be."""
    matrix = row_pointers.numel() - 1, *_address(row_pointers), *_address(columns), *_address(values)
    nbytes = compiled().packed_outliers_size(*matrix)
    if nbytes == 0:
        return None
    packed = empty_weight(nbytes)
    compiled().pack_outliers(*matrix, *_address(packed))
    return packed


def unpack_outliers(row_pointers: Tensor, packed: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `pack_outliers`: columns and values, int32 and fp32.

    Behind the row pointers stand all columns, 16 bits each, then all values, fp16; each of the three begins a line.
    """
    count = int(row_pointers[-1])
    columns = _lines(4 * len(row_pointers))
    values = columns + _lines(2 * count)
    places = packed[columns : columns + 2 * count].view(torch.int16)
    return places.to(torch.int32) & 0xFFFF, packed[values : values + 2 * count].view(torch.float16).float()


def _lines(nbytes: int) -> int:
    return -(-nbytes // LINE_BYTES) * LINE_BYTES


def are_outliers(layout: CodeLayout, packed: Tensor) -> bool:
    """Whether these bytes are what `pack_outliers` makes of a matrix of these rows and columns."""
    return bool(compiled().are_outliers(layout.rows, layout.columns, *_address(packed)))


def add_sparse(
    x: Tensor, row_pointers: Tensor, columns: Tensor, values: Tensor, order: Tensor | None, y: Tensor
) -> None:
    """Adds x times a sparse matrix in CSR (int32, int32, fp32) to y. x, order, y: as `Weight` takes them."""
    compiled().add_outliers(
        x.data_ptr(), extent(x), len(x), x.stride(0), x.shape[1], row_pointers.data_ptr(), columns.data_ptr(),
        values.data_ptr(), values.numel(), row_pointers.numel() - 1, *_address(order), *_address(y), y.shape[1],
        torch.get_num_threads(),
    )  # fmt: skip


def is_sparse_matrix(row_pointers: Tensor, columns: Tensor, count: int, in_features: int) -> bool:
    """Whether these are row pointers and columns of `count` values that lie within a matrix of so many columns."""
    if row_pointers.numel() == 0 or columns.numel() != count:
        return False
    if int(row_pointers[0]) != 0 or int(row_pointers[-1]) != count or bool((row_pointers.diff() < 0).any()):
        return False
    return count == 0 or (int(columns.min()) >= 0 and int(columns.max()) < in_features)


def _address(tensor: Tensor | None) -> tuple[int, int]:
    return (0, 0) if tensor is None else (tensor.data_ptr(), tensor.nbytes)
