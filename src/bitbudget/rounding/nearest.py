"""Round to nearest: every weight takes the nearest value of its group's grid.

Two walks over tiles of rows, so that a 16-bit weight is never held in fp32 as a whole: the first finds each group's
range, the second chooses codes against the parameters as they will be stored.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float as FloatArray
from jaxtyping import Int64
from torch import Tensor

from bitbudget.errors import InputError
from bitbudget.grids import BF16, FP16, GroupParameters, pack
from bitbudget.storage import Choice, Dense, DensePart, OutlierPart, Outliers, Part, StoredWeight, index_dtype

Weight = FloatArray[Tensor, "out in"]
TILE_WEIGHTS = 2**21  # 8 MiB of fp32; several temporaries of this size are alive at once


def nearest(weight: Weight, choice: Choice) -> StoredWeight:
    """Store a weight [out, in] (any float dtype) by a choice. Pure: the input is not changed, nothing is random.

    Outliers are the largest |w| of the whole layer; they do not count for the ranges of their groups, and their
    residual against the dense value is stored (LLM-MQ, section 2.1). The rows of a mix are ranked by the squared error
    that the wider grid saves. Where fp16 cannot hold the scales or residuals, bf16 takes their place and the returned
    weight's choice says so.

    Raises:
        InputError: the choice keeps the weight as it is, or cannot store this shape (`Choice.misfit`).
    """
    shape = (weight.shape[0], weight.shape[1])
    if reason := "it rounds nothing" if choice.kept else choice.misfit(shape):
        raise InputError(f"A weight {list(shape)} cannot be rounded to {choice}: {reason}. Give it another choice.")
    outliers = _largest(weight, choice.outliers.count.of(weight.numel())) if choice.outliers else None
    parts: list[Part] = []
    dense: list[Dense] = []
    for format, rows in zip(choice.dense, _row_sets(weight, choice, outliers), strict=True):
        part = _dense(weight, format, rows, outliers)
        parts.append(part)
        dense.append(part.format)
    sparse = choice.outliers
    if sparse is not None and outliers is not None:
        residual = _residual(weight, sparse, outliers, parts)
        parts.append(residual)
        sparse = residual.format
    stored = replace(choice, dense=tuple(dense), outliers=sparse)
    names = stored.dense_names() + (("outliers",) if sparse else ())
    tensors = {
        f"{name}.{key}": value for name, part in zip(names, parts, strict=True) for key, value in part.tensors().items()
    }
    return StoredWeight.from_tensors(stored, shape, tensors)


def _largest(weight: Weight, count: int) -> Int64[Tensor, " count"]:
    """Ascending flat positions of the `count` largest magnitudes; among equal ones the first, so the set is unique."""
    magnitudes = weight.abs().flatten()
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=weight.device)
    threshold = torch.topk(magnitudes, count, sorted=False).values.min()
    above = (magnitudes > threshold).nonzero().squeeze(1)
    ties = (magnitudes == threshold).nonzero().squeeze(1)[: count - len(above)]
    return torch.cat([above, ties]).sort().values


def _row_sets(weight: Weight, choice: Choice, outliers: Tensor | None) -> list[Tensor | None]:
    """Ascending rows of each dense part; None: all of them."""
    if len(choice.dense) == 1:
        return [None]
    errors = torch.stack([_row_errors(weight, part, outliers) for part in choice.dense])
    free = torch.ones(weight.shape[0], dtype=torch.bool, device=weight.device)
    sets: list[Tensor | None] = []
    for place, count in enumerate(choice.row_counts(weight.shape[0])):
        rest = errors[place + 1 :].amax(0) if place + 1 < len(errors) else errors[place]
        gain = torch.where(free, rest - errors[place], -torch.inf)
        rows = torch.sort(gain, descending=True, stable=True).indices[:count].sort().values
        free[rows] = False
        sets.append(rows)
    return sets


def _row_errors(weight: Weight, format: Dense, outliers: Tensor | None) -> FloatArray[Tensor, " out"]:
    """Squared rounding error of every row if the whole weight were stored by one format."""
    if format.grid.axis == "out":  # its groups are made of the rows it gets: judge rows by themselves
        format = replace(format, grid=replace(format.grid, axis="in", group=None))
    part = _dense(weight, format, None, outliers)
    errors = [
        ((tile - part.decode(rows)) * _kept(tile, rows, outliers)).square().sum(1)
        for rows, tile in _tiles(weight, None, 1)
    ]
    return torch.cat(errors)


def _tiles(weight: Weight, rows: Tensor | None, multiple: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(rows, their fp32 weights) in tiles of a multiple of `multiple` rows."""
    chosen = torch.arange(weight.shape[0], device=weight.device) if rows is None else rows
    step = max(1, TILE_WEIGHTS // weight.shape[1] // multiple) * multiple
    for start in range(0, len(chosen), step):
        tile = chosen[start : start + step]
        yield tile, weight[tile].float()


def _kept(tile: Tensor, rows: Tensor, outliers: Tensor | None) -> Tensor:
    """True where a weight of the tile is no outlier."""
    kept = torch.ones_like(tile, dtype=torch.bool)
    if outliers is None or outliers.numel() == 0:
        return kept
    columns = tile.shape[1]
    first = torch.searchsorted(outliers, rows * columns)
    last = torch.searchsorted(outliers, (rows + 1) * columns)
    place = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), last - first)
    entry = torch.arange(len(place), device=rows.device) - ((last - first).cumsum(0) - last)[place]
    kept[place, outliers[entry] % columns] = False
    return kept


def _dense(weight: Weight, format: Dense, rows: Tensor | None, outliers: Tensor | None) -> DensePart:
    """Two walks: ranges, then codes against the stored parameters."""
    shape = (weight.shape[0] if rows is None else len(rows), weight.shape[1])
    grid = format.grid
    multiple = grid.group_length(shape) if grid.axis == "out" else 1
    fitted = [grid.fit(tile, _kept(tile, at, outliers)) for at, tile in _tiles(weight, rows, multiple)]
    zeros = [table.zero for table in fitted if table.zero is not None]
    whole = GroupParameters(torch.cat([table.scale for table in fitted]), torch.cat(zeros) if zeros else None)
    if grid.scale == FP16 and not FP16.holds(whole.scale):
        grid = replace(grid, scale=BF16)
    parameters = grid.stored(whole)
    codes = []
    done = 0
    for _, tile in _tiles(weight, rows, multiple):
        own = torch.arange(done, done + len(tile), device=weight.device)
        codes.append(pack(grid.encode(tile, parameters.at(grid.table_rows(own, shape))), grid.bits))
        done += len(tile)
    index = None if rows is None else rows.to(index_dtype(weight.shape[0]))
    return DensePart.from_codes(replace(format, grid=grid), shape, torch.cat(codes), parameters, index)


def _residual(weight: Weight, format: Outliers, positions: Tensor, parts: list[Part]) -> OutlierPart:
    """What the dense parts leave at the outliers' positions."""
    columns = weight.shape[1]
    residual = torch.empty(len(positions), device=weight.device)
    for rows, tile in _tiles(weight, None, 1):
        first = int(torch.searchsorted(positions, rows[0] * columns))
        last = int(torch.searchsorted(positions, (rows[-1] + 1) * columns))
        dense = torch.zeros_like(tile)
        for part in parts:
            part.add_to(dense, rows)
        residual[first:last] = (tile - dense).flatten()[positions[first:last] - rows[0] * columns]
    if format.values == FP16 and len(residual) and not FP16.holds(residual.abs().amax()):
        format = replace(format, values=BF16)
    return OutlierPart.from_entries(format, (weight.shape[0], columns), positions, residual)
