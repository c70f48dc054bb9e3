"""The parts of a weight that is packed for the CPU kernels: codes with their scales and zeros, and outliers. Each gives its stored
tensors back, bit for bit.
"""

import torch
from torch import Tensor

from bitbudget.grids import Grid
from bitbudget.grids.codecs import Byte, PackedInt
from bitbudget.grids.codecs import Float as FloatCodec
from bitbudget.kernels.products import (
    CodeLayout,
    exact_parameters,
    lookup,
    pack,
    pack_outliers,
    unpack,
    unpack_outliers,
)
from bitbudget.kernels.tensors import StoredTensors
from bitbudget.storage import DensePart, OutlierPart
from bitbudget.storage.parts import places_in
from bitbudget.storage.tensors import index_dtype

PACKED_ENTRY_BYTES, ENTRY_BYTES, ORDER_BYTES = 4, 8, 4  # column and value of an outlier, packed or in CSR; the output of a row


class PackedDense(StoredTensors):
    """Codes, scales and zeros of one part; `order` is the output of each of its rows, int32, where that is not its number."""

    packed: Tensor
    order: Tensor | None
    sparse: Tensor | None  # packed outliers of its rows

    def __init__(self, part: DensePart, isa: int, order: Tensor | None) -> None:
        super().__init__()
        grid = self.grid = part.format.grid
        parameters = part.parameters(torch.arange(part.shape[0]))
        scale = parameters.scale.contiguous()
        zero = torch.full_like(scale, grid.fixed_zero) if parameters.zero is None else parameters.zero.contiguous()
        self.layout = layout_of(part, isa, exact_parameters(scale, zero))
        self.register_buffer(
            "packed", pack(self.layout, part.stored["codes"].contiguous(), scale, zero), persistent=False
        )
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("sparse", None, persistent=False)
        self.kept = tuple(name for name in part.stored if name not in {"codes", *found_again(grid)})
        for name in self.kept:  # copied, so that no file stays in memory for them
            self.register_buffer(f"kept_{name}", part.stored[name].clone(), persistent=False)

    def stored(self) -> dict[str, Tensor]:
        """The part's stored tensors, bit for bit."""
        codes, scale, zero = unpack(self.layout, self.packed)
        again = found_again(self.grid)
        found = {"codes": codes} | {name: self.get_buffer(f"kept_{name}") for name in self.kept}
        if "scale" in again:
            found |= {"scale" + suffix: tensor for suffix, tensor in self.grid.scale.tensors(scale).items()}
        if "zero" in again and self.grid.zeros is not None:
            found |= {"zero" + suffix: tensor for suffix, tensor in self.grid.zeros.tensors(zero).items()}
        return found

    def add_to(self, tile: Tensor, rows: Tensor) -> None:
        """Adds this part's values of some rows of the weight, int64, to an fp32 tile [n, in]."""
        index = self._buffers.get("kept_rows")
        if index is None:
            tile += lookup(self.layout, self.packed, rows)
            return
        own, mine = places_in(index, rows)
        tile.index_add_(0, mine, lookup(self.layout, self.packed, own))


class PackedOutliers(StoredTensors):
    """A sparse residual. Where they fit, its entries are packed with the dense parts whose rows they are in (`within`), and are
    added in the same product; else they are CSR in the numbers that the kernel of their own reads, int32 and fp32.
    """

    row_pointers: Tensor
    order: Tensor | None

    def __init__(self, part: OutlierPart, order: Tensor | None, within: "list[PackedDense]") -> None:
        super().__init__()
        self.format, self.shape, self.within = part.format, part.shape, within
        self.register_buffer("row_pointers", part.stored["row_pointers"].clone(), persistent=False)
        self.register_buffer("order", order, persistent=False)
        columns = part.stored["columns"].to(torch.int32, copy=True)
        values = part.stored["values"].to(torch.float32, copy=True)
        made = [self._packed(dense, columns, values) for dense in within]
        if not made or any(packed is None for packed in made):
            self.within = []
            self.register_buffer("columns", columns, persistent=False)
            self.register_buffer("values", values, persistent=False)
        for dense, packed in zip(self.within, made, strict=False):
            dense.register_buffer("sparse", packed, persistent=False)

    def _packed(self, dense: "PackedDense", columns: Tensor, values: Tensor) -> Tensor | None:
        pointers, entries = self._entries(dense)
        return pack_outliers(pointers, columns[entries].contiguous(), values[entries].contiguous())

    def _entries(self, dense: "PackedDense") -> tuple[Tensor, Tensor]:
        """Row pointers, int32, of a dense part's rows alone, and the places of their entries in the whole matrix."""
        index, pointers = dense._buffers.get("kept_rows"), self.row_pointers.to(torch.int64)
        rows = torch.arange(dense.layout.rows) if index is None else index.to(torch.int64)
        counts = pointers[rows + 1] - pointers[rows]
        own = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        shift = (pointers[rows] - own[:-1]).repeat_interleave(counts)
        return own.to(torch.int32), torch.arange(int(own[-1])) + shift

    def stored(self) -> dict[str, Tensor]:
        """The part's stored tensors, bit for bit."""
        columns, values = self._matrix()
        return {
            "values": values.to(self.format.values.dtype),
            "columns": columns.to(index_dtype(self.shape[1])),
            "row_pointers": self.row_pointers,
        }

    def _matrix(self) -> tuple[Tensor, Tensor]:
        """Columns and values, int32 and fp32."""
        if not self.within:
            return self.get_buffer("columns"), self.get_buffer("values")
        count = int(self.row_pointers[-1])
        columns, values = torch.empty(count, dtype=torch.int32), torch.empty(count)
        for dense in self.within:
            pointers, entries = self._entries(dense)
            columns[entries], values[entries] = unpack_outliers(pointers, dense.get_buffer("sparse"))
        return columns, values

    def add_to(self, tile: Tensor, rows: Tensor) -> None:
        """Adds the residual of some rows of the weight, int64, to an fp32 tile [n, in]."""
        columns, values = self._matrix()
        tensors = {"row_pointers": self.row_pointers, "columns": columns, "values": values}
        OutlierPart(self.format, self.shape, tensors).add_to(tile, rows)


def layout_of(part: DensePart, isa: int, parameters: int) -> CodeLayout:
    """Of a part whose groups run along columns."""
    grid = part.format.grid
    return CodeLayout(isa, *part.shape, grid.group_length(part.shape), grid.bits, parameters)


def found_again(grid: Grid) -> set[str]:
    """The stored tensors of group parameters that follow from the decoded ones alone."""
    exact = FloatCodec | PackedInt | Byte
    return {name for name, codec in (("scale", grid.scale), ("zero", grid.zeros)) if isinstance(codec, exact)}
