"""A weight whose groups have their parameters, before its codes are written: its errors row by row, or all of it stored.

Errors are wanted for every choice of a layer, the stored form for one of them; both come from the same parameters, so an
error is exactly what the stored weight will differ by.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bitbudget.calibration.gram import GroupGram
from bitbudget.grids import BF16, FP16, GroupParameters, pack
from bitbudget.grids.clip import clipped
from bitbudget.kernels.rounding import nearest, range_errors
from bitbudget.storage import Choice, Dense, DensePart, OutlierPart, Outliers, Part, StoredWeight, index_dtype
from bitbudget.threads import mapped

Weight = Float[Tensor, "out in"]
TILE_WEIGHTS = 2**21  # 8 MiB of fp32; several temporaries of this size are alive at once
FP16_LARGEST = 65504.0
PIECE_WEIGHTS = 2**19  # of one thread: it passes over its tile many times, which then stays near


@dataclass(frozen=True)
class FittedPart:
    """One dense part: the parameters of its groups as they are stored, and its rows (None: all)."""

    format: Dense
    parameters: GroupParameters
    rows: Int64[Tensor, " n"] | None

    @classmethod
    def of(
        cls, weight: Weight, format: Dense, rows: Tensor | None, outliers: Tensor | None, gram: GroupGram | None
    ) -> "FittedPart":
        """Finds the range of every group. bf16 takes fp16's place where that cannot hold the scales."""
        shape = (weight.shape[0] if rows is None else len(rows), weight.shape[1])
        grid = format.grid
        multiple = grid.group_length(shape) if grid.axis == "out" else 1
        searched = grid.range == "clip"
        weighting = gram.of_groups(grid.group_length(shape)).to(weight.device) if gram is not None and searched else None

        def tile_fitted(at: Tensor) -> tuple[GroupParameters, bool]:
            """Parameters of some rows, and whether their codec holds the scales."""
            tile = weight[at].float()
            keep = kept_mask(tile, at, outliers)
            widest = grid.fit(tile, keep)
            found = clipped(grid, tile, keep, weighting, range_errors) if searched else widest
            return found, grid.scale != FP16 or (FP16.holds(widest.scale) and FP16.holds(found.scale))

        pieces = row_tiles(weight, rows, multiple, PIECE_WEIGHTS)
        fitted, held = zip(*mapped(tile_fitted, pieces, weight.device), strict=True)
        if not all(held):
            # All over again: ranges are searched against scales as they will be stored.
            return cls.of(weight, replace(format, grid=replace(grid, scale=BF16)), rows, outliers, gram)
        zeros = [table.zero for table in fitted if table.zero is not None]
        whole = GroupParameters(torch.cat([table.scale for table in fitted]), torch.cat(zeros) if zeros else None)
        return cls(format, grid.stored(whole), rows)

    def shape(self, weight: Weight) -> tuple[int, int]:
        return weight.shape[0] if self.rows is None else len(self.rows), weight.shape[1]

    def at(self, own: Int64[Tensor, " n"], weight: Weight) -> GroupParameters:
        """Parameters of some of this part's own rows."""
        return self.parameters.at(self.format.grid.table_rows(own, self.shape(weight)))

    def values(self, weight: Weight, rows: Int64[Tensor, " n"], tile: Float[Tensor, "n in"]) -> Float[Tensor, "n in"]:
        """What the rows of a tile decode to; 0 in rows that are another part's."""
        if self.rows is None:
            return nearest(self.format.grid, tile, self.at(rows, weight))
        own = torch.searchsorted(self.rows, rows).clamp(max=len(self.rows) - 1)
        mine = (self.rows[own] == rows).nonzero().squeeze(1)
        values = torch.zeros_like(tile)
        values[mine] = nearest(self.format.grid, tile[mine], self.at(own[mine], weight))
        return values

    def stored(self, weight: Weight) -> DensePart:
        """Codes of all its rows."""
        grid, shape = self.format.grid, self.shape(weight)
        multiple = grid.group_length(shape) if grid.axis == "out" else 1
        codes, done = [], 0
        for _, tile in tiles(weight, self.rows, multiple):
            own = torch.arange(done, done + len(tile), device=weight.device)
            codes.append(pack(grid.encode(tile, self.at(own, weight)), grid.bits))
            done += len(tile)
        index = None if self.rows is None else self.rows.to(index_dtype(weight.shape[0]))
        return DensePart.from_codes(self.format, shape, torch.cat(codes), self.parameters, index)


@dataclass(frozen=True)
class Fitted:
    """A weight [out, in] and how each of its parts will store it. positions: flat, ascending, of its outliers."""

    weight: Weight
    choice: Choice
    parts: tuple[FittedPart, ...]
    positions: Int64[Tensor, " k"] | None

    def values(self, rows: slice | Int64[Tensor, " n"]) -> Float[Tensor, "n in"]:
        """What some rows will decode to, fp32: bit for bit what the stored weight gives."""
        return self._values(rows, self.weight[rows].float())

    def _values(self, rows: slice | Int64[Tensor, " n"], tile: Float[Tensor, "n in"]) -> Float[Tensor, "n in"]:
        device = self.weight.device
        chosen = torch.arange(*rows.indices(self.weight.shape[0]), device=device) if isinstance(rows, slice) else rows
        values = self._dense(chosen, tile)
        if self.positions is not None and self._sparse is not None:
            at = entries(self.positions, chosen, tile.shape[1])
            values[at] += (tile[at] - values[at]).to(self._sparse.values.dtype).float()
        return values

    def _dense(self, rows: Int64[Tensor, " n"], tile: Float[Tensor, "n in"]) -> Float[Tensor, "n in"]:
        """What the dense parts of some rows decode to."""
        values = self.parts[0].values(self.weight, rows, tile)
        for part in self.parts[1:]:
            values += part.values(self.weight, rows, tile)
        return values

    @cached_property
    def _sparse(self) -> Outliers | None:
        """The outliers as they will be stored: bf16 where fp16 could not hold the residuals of the whole weight."""
        sparse = self.choice.outliers
        if sparse is None or sparse.values != FP16 or self.positions is None or not len(self.positions):
            return sparse
        ends = [float(part.parameters.scale.amax()) * part.format.grid.levels for part in self.parts]
        bounded = float(self.weight.abs().amax()) + max(ends) <= FP16_LARGEST
        largest = torch.zeros((), device=self.weight.device)
        for rows, tile in tiles(self.weight, None, 1):
            at = entries(self.positions, rows, tile.shape[1])
            residual = tile[at] - self._dense(rows, tile)[at]
            largest = torch.cat([residual.abs(), largest[None]]).amax()
            if bounded and FP16.holds(largest) and largest > 0:
                break  # the rest cannot change it
        return sparse if FP16.holds(largest) else replace(sparse, values=BF16)

    def error(self, rows: slice) -> Float[Tensor, "n in"]:
        """Stored minus original values of some rows, fp32."""
        tile = self.weight[rows].float()
        return self._values(rows, tile).sub_(tile)

    def decoded(self, dtype: torch.dtype) -> Weight:
        """All it will decode to, in a dtype."""
        result = torch.empty(self.weight.shape, dtype=dtype, device=self.weight.device)
        _ = self._sparse  # once, not in every thread

        def fill(rows: Tensor) -> None:
            result[rows] = self.values(rows).to(dtype)

        mapped(fill, row_tiles(self.weight, None, 1, PIECE_WEIGHTS), self.weight.device)
        return result

    def stored(self) -> StoredWeight:
        """The whole weight with its codes."""
        parts: list[Part] = [part.stored(self.weight) for part in self.parts]
        sparse = self._sparse
        if sparse is not None and self.positions is not None:
            parts.append(self._residual(sparse, self.positions, parts))
        stored = replace(self.choice, dense=tuple(part.format for part in self.parts), outliers=sparse)
        names = stored.dense_names() + (("outliers",) if sparse else ())
        tensors = {
            f"{name}.{key}": value
            for name, part in zip(names, parts, strict=True)
            for key, value in part.tensors().items()
        }
        return StoredWeight.from_tensors(stored, (self.weight.shape[0], self.weight.shape[1]), tensors)

    def _residual(self, format: Outliers, positions: Tensor, parts: list[Part]) -> OutlierPart:
        """What the dense parts leave at the outliers' positions."""
        residual, done = torch.empty(len(positions), device=self.weight.device), 0
        for rows, tile in tiles(self.weight, None, 1):
            dense = torch.zeros_like(tile)
            for part in parts:
                part.add_to(dense, rows)
            at = entries(positions, rows, tile.shape[1])
            residual[done : done + len(at[0])] = tile[at] - dense[at]
            done += len(at[0])
        shape = (self.weight.shape[0], self.weight.shape[1])
        return OutlierPart.from_entries(format, shape, positions, residual)


def entries(positions: Int64[Tensor, " k"], rows: Int64[Tensor, " n"], columns: int) -> tuple[Tensor, Tensor]:
    """Place within `rows`, and column, of the ascending flat positions that lie in them."""
    first = torch.searchsorted(positions, rows * columns)
    last = torch.searchsorted(positions, (rows + 1) * columns)
    place = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), last - first)
    entry = torch.arange(len(place), device=rows.device) - ((last - first).cumsum(0) - last)[place]
    return place, positions[entry] % columns


def row_tiles(weight: Weight, rows: Tensor | None, multiple: int, size: int) -> Iterator[Int64[Tensor, " n"]]:
    """Rows of tiles of about `size` weights, each a multiple of `multiple` rows."""
    chosen = torch.arange(weight.shape[0], device=weight.device) if rows is None else rows
    step = max(1, size // weight.shape[1] // multiple) * multiple
    yield from chosen.split(step)


def tiles(weight: Weight, rows: Tensor | None, multiple: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(rows, their fp32 weights) in tiles of a multiple of `multiple` rows."""
    for tile in row_tiles(weight, rows, multiple, TILE_WEIGHTS):
        yield tile, weight[tile].float()


def kept_mask(tile: Tensor, rows: Tensor, outliers: Tensor | None) -> Tensor | None:
    """True where a weight of the tile is no outlier; None if none is."""
    if outliers is None or outliers.numel() == 0:
        return None
    kept = torch.ones_like(tile, dtype=torch.bool)
    kept[entries(outliers, rows, tile.shape[1])] = False
    return kept
