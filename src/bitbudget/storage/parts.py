"""Parts: the addends of a stored weight, W ≈ Σ parts. Each covers a region and adds itself to the rows it is asked for.

A new kind of part is a class with this interface, a line in the grammar and in the native layout; kernels look parts up
by class.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bitbudget.grids import GroupParameters, unpack
from bitbudget.storage.choice import Dense, Outliers, Shape
from bitbudget.storage.tensors import index_dtype

# Decoding takes several temporaries of a tile's size; a few rows at a time they stay small, and in the cache.
DECODED_AT_ONCE = 2**18

Rows = Int64[Tensor, " n"]
Tile = Float[Tensor, "n in"]


@runtime_checkable
class Part(Protocol):
    """One addend of a weight [out, in]."""

    @property
    def sees(self) -> str:
        """The input it multiplies: "raw" (before the layer's input map), "transformed" (after it) or "quantized"
        (after the activation format too).
        """
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Stored tensors, named relative to the part."""
        ...

    def add_to(self, tile: Tile, rows: Rows) -> None:
        """Add this part's values of the given rows to an fp32 tile, in place."""
        ...


@dataclass(frozen=True)
class DensePart:
    """Codes with scales and zeros, for all rows or for those in `index` (ascending)."""

    format: Dense
    shape: Shape  # of its own rows
    stored: dict[str, Tensor]
    sees: str = "quantized"

    @classmethod
    def from_codes(
        cls, format: Dense, shape: Shape, codes: Tensor, parameters: GroupParameters, index: Tensor | None
    ) -> "DensePart":
        """Build from packed codes [rows, words] and already rounded parameters."""
        stored = {} if index is None else {"rows": index}
        stored["codes"] = codes
        grid = format.grid
        stored |= {"scale" + suffix: tensor for suffix, tensor in grid.scale.tensors(parameters.scale).items()}
        if grid.zeros is not None and parameters.zero is not None:
            stored |= {"zero" + suffix: tensor for suffix, tensor in grid.zeros.tensors(parameters.zero).items()}
        return cls(format, shape, stored)

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.stored)

    def parameters(self, rows: Rows) -> GroupParameters:
        """Decoded scale and zero for some of this part's own rows."""
        grid = self.format.grid
        table, table_rows = grid.table_shape(self.shape), grid.table_rows(rows, self.shape)
        if grid.axis == "out":  # neighbouring rows share theirs: decoded once
            table_rows, place = torch.unique_consecutive(table_rows, return_inverse=True)
        scale = grid.scale.decode(self._named("scale"), table, table_rows)
        zero = None if grid.zeros is None else grid.zeros.decode(self._named("zero"), table, table_rows)
        found = GroupParameters(scale, zero)
        return found.at(place) if grid.axis == "out" else found

    def _named(self, name: str) -> dict[str, Tensor]:
        return {key.removeprefix(name): tensor for key, tensor in self.stored.items() if key.startswith(name)}

    def decode(self, rows: Rows) -> Tile:
        """fp32 values of some of this part's own rows."""
        codes = unpack(self.stored["codes"][rows], self.format.grid.bits, self.shape[1])
        return self.format.grid.decode(codes, self.parameters(rows))

    def add_to(self, tile: Tile, rows: Rows) -> None:
        if "rows" not in self.stored:
            tile += self.decode(rows)
            return
        own, mine = places_in(self.stored["rows"], rows)
        tile.index_add_(0, mine, self.decode(own))


@dataclass(frozen=True)
class OutlierPart:
    """A sparse residual: CSR values, columns and row pointers."""

    format: Outliers
    shape: Shape
    stored: dict[str, Tensor]
    sees: str = "quantized"

    @classmethod
    def from_entries(
        cls, format: Outliers, shape: Shape, positions: Int64[Tensor, " k"], residual: Float[Tensor, " k"]
    ) -> "OutlierPart":
        """Build from residuals at ascending flat positions (row · in + column) of a weight [out, in]."""
        per_row = torch.bincount(positions // shape[1], minlength=shape[0])
        pointers = torch.nn.functional.pad(per_row.cumsum(0), (1, 0))
        stored = {
            "values": residual.to(format.values.dtype),
            "columns": (positions % shape[1]).to(index_dtype(shape[1])),
            "row_pointers": pointers.to(torch.int32),
        }
        return cls(format, shape, stored)

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.stored)

    def add_to(self, tile: Tile, rows: Rows) -> None:
        pointers = self.stored["row_pointers"]
        first = pointers[rows].to(torch.int64)
        counts = pointers[rows + 1].to(torch.int64) - first
        place = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), counts)
        offset = torch.arange(len(place), device=rows.device) - (counts.cumsum(0) - counts)[place]
        entry = first[place] + offset
        columns = self.stored["columns"][entry].to(torch.int64)
        tile.index_put_((place, columns), self.stored["values"][entry].float(), accumulate=True)


def places_in(index: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """Where some of `rows` stand in an ascending row index, and which of `rows` those are."""
    wide = index.to(torch.int64)
    own = torch.searchsorted(wide, rows).clamp(max=wide.numel() - 1)
    mine = (wide[own] == rows).nonzero().squeeze(1)
    return own[mine], mine
