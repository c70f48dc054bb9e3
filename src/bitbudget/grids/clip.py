"""The range rule `clip`: a group's range is shrunk as far as the error of the layer's output gets smaller (AWQ, Lin et al. 2023).

    m = m₀ · (1 − i/20), i = 0 … 9, m₀ = max |w| of the group; the m of least E_x [((Q(clamp(w, −m, m)) − w)ᵀ x)²]

for every row and group by itself, x being the group's inputs. The expectation is δᵀ H δ with H = E[x xᵀ] of the group, or
Σ h δ² where only its diagonal h is known, or |δ|² where nothing is.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bitbudget.grids.grid import Grid, GroupParameters

SHRINKS = tuple(1 - step / 20 for step in range(10))
Weighting = Float[Tensor, "groups columns columns"] | Float[Tensor, "groups columns"]


@runtime_checkable
class RangeErrors(Protocol):
    """Errors [tries, rows, groups] of tries of the ranges of a matrix, as `range_errors` measures them."""

    def __call__(
        self,
        grid: Grid,
        weights: Float[Tensor, "rows in"],
        left_out: tuple[Tensor, ...] | None,
        parameters: GroupParameters,
        weighting: Weighting | None,
    ) -> Float[Tensor, "tries rows groups"]: ...


def range_errors(
    grid: Grid,
    weights: Float[Tensor, "rows in"],
    left_out: tuple[Tensor, ...] | None,
    parameters: GroupParameters,
    weighting: Weighting | None,
) -> Float[Tensor, "tries rows groups"]:
    """`nearest_error` of every try. parameters: [tries, rows, groups]; left_out: rows and columns whose error counts as 0."""
    # Fresh memory for every try would cost more than the try.
    buffers = weights.new_empty(weights.shape), weights.new_empty(weights.shape)
    tries = (parameters.at(torch.tensor(number)) for number in range(len(parameters.scale)))
    return torch.stack([nearest_error(grid, weights, left_out, one, weighting, buffers) for one in tries])


def clipped(
    grid: Grid,
    weights: Float[Tensor, "rows in"],
    keep: Bool[Tensor, "rows in"] | None,
    weighting: Weighting | None,
    errors: RangeErrors = range_errors,
) -> GroupParameters:
    """Parameters, fp32, of a tile of rows; only weights where `keep` count, for ranges and for errors.

    weighting: H of every group, its diagonal, or None. errors: what measures the tries. Among equal errors the widest range
    wins, so a group is never worse than with its own minimum and maximum (where scales are stored by themselves: those of a
    two-level codec move with their neighbours').
    """
    assert grid.axis == "in", "groups of rows have no inputs of their own"
    left_out = None
    if keep is not None:
        weights = weights.masked_fill(~keep, 0.0)  # which most grids store without an error
        left_out = None if grid.holds_zero else (~keep).nonzero(as_tuple=True)
    low, high = grid.limits(weights)
    widest = torch.maximum(-low, high)
    shrinks = torch.tensor(SHRINKS, device=weights.device).view(-1, 1, 1)
    fitted = grid.spanning(low.maximum(-shrinks * widest), high.minimum(shrinks * widest))  # [tries, rows, groups]
    found = errors(grid, weights, left_out, grid.stored_all(fitted), weighting)
    best = found.nan_to_num(nan=torch.inf).min(0, keepdim=True).indices  # the first among equals
    zero = None if fitted.zero is None else fitted.zero.gather(0, best)[0]
    return GroupParameters(fitted.scale.gather(0, best)[0], zero)


def nearest_error(
    grid: Grid,
    weights: Float[Tensor, "rows in"],
    left_out: tuple[Tensor, ...] | None,
    parameters: GroupParameters,
    weighting: Weighting | None,
    buffers: tuple[Float[Tensor, "rows in"], Float[Tensor, "rows in"]] | None = None,
) -> Float[Tensor, "rows groups"]:
    """δᵀ H δ of every group, δ being what rounding to the nearest value changes; 0 at the rows and columns left out.

    buffers: overwritten.
    """
    first, second = buffers or (torch.empty_like(weights), torch.empty_like(weights))
    error = grid.nearest(weights, parameters, first).sub_(weights)
    if left_out is not None:
        error[left_out] = 0.0  # few of them: cheaper than a mask over all
    groups = error.unflatten(1, (parameters.scale.shape[1], -1))
    if weighting is None:
        return groups.square_().sum(-1)
    if weighting.dim() == 2:
        return (groups.square_() * weighting).sum(-1)
    by_group = groups.transpose(0, 1)
    at_output = torch.bmm(by_group, weighting, out=second.view(by_group.shape))
    return at_output.mul_(by_group).sum(-1).T
