"""Searched ranges: never worse than minimum and maximum, under every weighting of errors."""

import pytest
import torch
from torch import Tensor

from bitbudget.calibration.gram import GroupGram
from bitbudget.grids import BF16, Grid
from bitbudget.grids.clip import SHRINKS, clipped, nearest_error

ROWS, COLUMNS, GROUP = 9, 48, 16
GRIDS = [
    Grid(levels=4, group=GROUP, range="clip"),
    Grid(levels=8, group=GROUP, zero="none", range="clip"),
    Grid(levels=8, group=GROUP, zero="real", scale=BF16, range="clip"),
    Grid(levels=16, group=GROUP, zero="half", range="clip"),
    Grid(levels=4, range="clip"),
]


def heavy(seed: int = 0) -> Tensor:
    """Weights with long tails, where clipping pays."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, COLUMNS, generator=generator) * torch.rand(ROWS, COLUMNS, generator=generator) ** -0.5


def weightings(grid: Grid) -> dict[str, Tensor | None]:
    inputs = torch.randn(40, COLUMNS, generator=torch.Generator().manual_seed(9)) * torch.linspace(0, 3, COLUMNS)
    gram, length = GroupGram.of(inputs), grid.group_length((ROWS, COLUMNS))
    return {"none": None, "full": gram.of_groups(length), "diagonal": gram.diagonal.view(-1, length)}


def masks() -> dict[str, Tensor | None]:
    weights = heavy()
    nothing = torch.ones_like(weights, dtype=torch.bool)
    nothing[:, :GROUP] = False
    return {"all": None, "without the largest": weights.abs() < 2.5, "a group of outliers": nothing}


@pytest.mark.parametrize("weighting", ["none", "full", "diagonal"])
@pytest.mark.parametrize("masked", ["all", "without the largest", "a group of outliers"])
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.levels}-{grid.zero}-{grid.group}")
def test_no_group_is_worse_than_with_its_minimum_and_maximum(grid: Grid, masked: str, weighting: str) -> None:
    weights, keep, by = heavy(), masks()[masked], weightings(grid)[weighting]
    outliers = None if keep is None else (~keep).nonzero(as_tuple=True)
    found = clipped(grid, weights, keep, by)
    error = nearest_error(grid, weights, outliers, grid.stored(found), by)
    plain = nearest_error(grid, weights, outliers, grid.stored(grid.fit(weights, keep)), by)
    assert (error <= plain).all()
    if masked == "all":
        assert error.sum() < 0.98 * plain.sum()


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.levels}-{grid.zero}-{grid.group}")
def test_the_best_of_all_tries_is_taken(grid: Grid) -> None:
    """Against a plain search, row by row and group by group."""
    weights, by = heavy(3), weightings(grid)["full"]
    assert by is not None
    found = grid.stored(clipped(grid, weights, None, by))
    error = nearest_error(grid, weights, None, found, by)
    length = grid.group_length((ROWS, COLUMNS))
    single = Grid(grid.levels, grid.zero, None, scale=grid.scale)
    for row in range(ROWS):
        for group in range(COLUMNS // length):
            values = weights[row : row + 1, group * length : (group + 1) * length]
            tries = []
            for shrink in SHRINKS:
                most = shrink * float(values.abs().max())
                parameters = single.stored(single.fit(values.clamp(-most, most)))
                delta = (single.nearest(values, parameters) - values)[0]
                tries.append(float(delta @ by[group] @ delta))
            assert float(error[row, group]) == pytest.approx(min(tries), rel=1e-3, abs=1e-7)


def test_a_full_weighting_is_the_error_of_the_output() -> None:
    grid, weights = GRIDS[0], heavy()
    inputs = torch.randn(60, COLUMNS, generator=torch.Generator().manual_seed(2))
    found = grid.stored(grid.fit(weights))
    error = nearest_error(grid, weights, None, found, GroupGram.of(inputs).of_groups(GROUP))
    delta = (grid.nearest(weights, found) - weights).unflatten(1, (-1, GROUP))
    output = torch.einsum("rgc,tgc->trg", delta, inputs.unflatten(1, (-1, GROUP)))
    torch.testing.assert_close(error, output.square().mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grid", [GRIDS[0], GRIDS[2]], ids=lambda grid: f"{grid.levels}-{grid.zero}")
def test_grid_points_stay(grid: Grid) -> None:
    """Groups that hold both ends of their grid are stored without a loss, whatever was tried."""
    weights = (torch.arange(ROWS * COLUMNS).view(ROWS, COLUMNS) % grid.levels - 1.0) * 2.0 ** torch.arange(ROWS)[:, None]
    stored = grid.stored(clipped(grid, weights, None, None))
    assert torch.equal(grid.nearest(weights, stored), weights)


@pytest.mark.parametrize("weights", [torch.zeros(3, COLUMNS), torch.full((3, COLUMNS), -0.4)], ids=["zeros", "constant"])
def test_flat_groups(weights: Tensor) -> None:
    for grid in GRIDS:
        stored = grid.stored(clipped(grid, weights, None, None))
        assert torch.isfinite(grid.nearest(weights, stored)).all()
        if grid.zero == "int":
            torch.testing.assert_close(grid.nearest(weights, stored), weights, rtol=1e-3, atol=1e-6)


def test_inputs_that_never_fire_leave_the_range_alone() -> None:
    grid, weights = GRIDS[0], heavy()
    nothing = torch.zeros(COLUMNS // GROUP, GROUP, GROUP)
    assert torch.equal(clipped(grid, weights, None, nothing).scale, grid.fit(weights).scale)
