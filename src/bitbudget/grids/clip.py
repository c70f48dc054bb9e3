"""The range rule `clip`: a group's range is shrunk as far as the error of the layer's output gets smaller (AWQ, Lin et al. 2023).

    m = m₀ · (1 − i/20), i = 0 … 9, m₀ = max |w| of the group; the m of least E_x [((Q(clamp(w, −m, m)) − w)ᵀ x)²]

for every row and group by itself, x being the group's inputs. The expectation is δᵀ H δ with H = E[x xᵀ] of the group, or
Σ h δ² where only its diagonal h is known, or |δ|² where nothing is.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bitbudget.grids.grid import Grid, GroupParameters

SHRINKS = tuple(1 - step / 20 for step in range(10))
Weighting = Float[Tensor, "groups columns columns"] | Float[Tensor, "groups columns"]


def clipped(
    grid: Grid, weights: Float[Tensor, "rows in"], keep: Bool[Tensor, "rows in"] | None, weighting: Weighting | None
) -> GroupParameters:
    """Parameters, fp32, of a tile of rows; only weights where `keep` count, for ranges and for errors.

    weighting: H of every group, its diagonal, or None. Among equal errors the widest range wins, so a group is never
    worse than with its own minimum and maximum (where scales are stored by themselves: those of a two-level codec move with
    their neighbours').
    """
    assert grid.axis == "in", "groups of rows have no inputs of their own"
    low, high = grid.limits(weights, keep)
    widest = torch.maximum(-low, high)
    left_out = None if keep is None else (~keep).nonzero(as_tuple=True)
    best = torch.full_like(low, torch.inf)
    ends = low, high
    for shrink in SHRINKS:
        tried = low.maximum(-shrink * widest), high.minimum(shrink * widest)
        error = nearest_error(grid, weights, left_out, grid.stored(grid.spanning(*tried)), weighting)
        better = error < best
        best = torch.where(better, error, best)
        ends = torch.where(better, tried[0], ends[0]), torch.where(better, tried[1], ends[1])
    return grid.spanning(*ends)


def nearest_error(
    grid: Grid,
    weights: Float[Tensor, "rows in"],
    left_out: tuple[Tensor, ...] | None,
    parameters: GroupParameters,
    weighting: Weighting | None,
) -> Float[Tensor, "rows groups"]:
    """δᵀ H δ of every group, δ being what rounding to the nearest value changes; 0 at the rows and columns left out."""
    error = grid.nearest(weights, parameters).sub_(weights)
    if left_out is not None:
        error[left_out] = 0.0  # few of them: cheaper than a mask over all
    groups = error.unflatten(1, (parameters.scale.shape[1], -1))
    if weighting is None:
        return groups.square().sum(-1)
    if weighting.dim() == 2:
        return (groups.square_() * weighting).sum(-1)
    by_group = groups.transpose(0, 1)
    return torch.bmm(by_group, weighting).mul_(by_group).sum(-1).T
