"""Rounding of weights on the CPU: what the nearest codes decode to, and what tries of a range cost. One pass over a tile of rows,
where the plain twins in `grids` take ten.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bitbudget.grids import Grid, GroupParameters
from bitbudget.grids.clip import Weighting
from bitbudget.grids.clip import range_errors as plain_range_errors
from bitbudget.kernels.extension import ISAS, best_isa, extension

LARGEST_GROUP = 128  # of searched ranges: the group's matrix and δ of 16 rows stay in the second-level cache


def nearest(
    grid: Grid, weights: Float[Tensor, "rows in"], parameters: GroupParameters, isa: str | None = None
) -> Float[Tensor, "rows in"]:
    """`Grid.nearest`, to the bit.

    isa: an instruction set, for tests; by default the best of this machine.
    """
    compiled = _compiled(grid, weights)
    if compiled is None:
        return grid.nearest(weights, parameters)
    weights, values = weights.contiguous(), torch.empty(weights.shape)
    scale, zero = _tables(grid, parameters)
    group = weights.shape[1] // scale.shape[1]
    tables = scale.data_ptr(), zero.data_ptr(), scale.nbytes
    shape = weights.data_ptr(), weights.nbytes, *weights.shape, group
    compiled.nearest(_number(isa), *shape, *tables, grid.levels - 1, values.data_ptr(), values.nbytes)
    return values


def range_errors(
    grid: Grid,
    weights: Float[Tensor, "rows in"],
    left_out: tuple[Tensor, ...] | None,
    parameters: GroupParameters,
    weighting: Weighting | None,
    isa: str | None = None,
) -> Float[Tensor, "tries rows groups"]:
    """δᵀ H δ of every group and try, as `grids.clip.range_errors` measures it, up to fp32 rounding of the sums."""
    compiled = _compiled(grid, weights)
    if compiled is None or left_out is not None or weighting is None or weighting.dim() == 2 or weighting.shape[1] > LARGEST_GROUP:
        return plain_range_errors(grid, weights, left_out, parameters, weighting)
    weights, gram = weights.contiguous(), weighting.contiguous()
    scale, zero = _tables(grid, parameters)
    errors = torch.empty_like(scale)
    tables = scale.data_ptr(), zero.data_ptr(), scale.nbytes
    shape = weights.data_ptr(), weights.nbytes, *weights.shape, gram.shape[1], len(scale)
    given = gram.data_ptr(), gram.nbytes, errors.data_ptr(), errors.nbytes
    compiled.range_errors(_number(isa), *shape, *tables, grid.levels - 1, *given)
    return errors


def _compiled(grid: Grid, weights: Tensor) -> Any:
    """The extension, where it has this grid and is needed; None otherwise."""
    if weights.device.type != "cpu" or weights.numel() == 0 or grid.axis != "in" or not 2 <= grid.levels <= 256:
        return None
    return extension()


def _tables(grid: Grid, parameters: GroupParameters) -> tuple[Tensor, Tensor]:
    """Scales and zeros, one of each a group."""
    scale = parameters.scale.contiguous()
    return scale, torch.full_like(scale, grid.fixed_zero) if parameters.zero is None else parameters.zero.contiguous()


def _number(isa: str | None) -> int:
    return ISAS.index(isa or best_isa() or "portable")
