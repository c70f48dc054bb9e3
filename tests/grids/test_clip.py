"""The range rule `clip`: never worse than minimum and maximum on its own objective, and blind to outliers."""

import pytest
import torch
from torch import Tensor

from bitbudget.calibration.gram import GroupGram, block_width
from bitbudget.grids import Grid
from bitbudget.grids.clip import clipped, nearest_error

ROWS, COLUMNS, GROUP = 24, 256, 64


def weights(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, COLUMNS, generator=generator) * torch.rand(ROWS, 1, generator=generator)


def inputs() -> Tensor:
    generator = torch.Generator().manual_seed(9)
    mixed = torch.randn(COLUMNS, COLUMNS, generator=generator)
    return torch.randn(300, COLUMNS, generator=generator) @ mixed


def weighting(kind: str) -> Tensor | None:
    gram = GroupGram.of(inputs())
    return {"whole": gram.of_groups(GROUP), "diagonal": gram.diagonal.view(-1, GROUP), "none": None}[kind]


@pytest.mark.parametrize("kind", ["whole", "diagonal", "none"])
@pytest.mark.parametrize("zero", ["int", "none"])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_no_group_is_worse_than_with_its_minimum_and_maximum(kind: str, zero: str, bits: int, masked: bool) -> None:
    grid, weight = Grid(2**bits, zero, GROUP), weights()
    keep = weight.abs() < 1.5 if masked else None
    left_out = (~keep).nonzero(as_tuple=True) if keep is not None else None
    plain = nearest_error(grid, weight, left_out, grid.stored(grid.fit(weight, keep)), weighting(kind))
    found = grid.stored(clipped(grid, weight, keep, weighting(kind)))
    searched = nearest_error(grid, weight, left_out, found, weighting(kind))
    assert bool((searched <= plain).all())
    assert float(searched.sum()) < 0.99 * float(plain.sum()) or bits == 4


def test_the_error_is_that_of_the_output() -> None:
    grid, weight, x = Grid(8, "int", GROUP), weights(), inputs()
    parameters = grid.stored(grid.fit(weight))
    error = grid.nearest(weight, parameters) - weight
    for group in range(COLUMNS // GROUP):
        columns = slice(group * GROUP, (group + 1) * GROUP)
        expected = (x[:, columns] @ error[:, columns].T).square().mean(0)
        found = nearest_error(grid, weight, None, parameters, GroupGram.of(x).of_groups(GROUP))[:, group]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_grid_points_stay() -> None:
    grid = Grid(8, "int", GROUP)
    once = grid.nearest(weights(), grid.stored(clipped(grid, weights(), None, None)))
    again = grid.nearest(once, grid.stored(clipped(grid, once, None, None)))
    torch.testing.assert_close(again, once, rtol=0, atol=2e-3)


@pytest.mark.parametrize(("columns", "width"), [(256, 128), (150, 75), (4096, 128), (24, 24), (7, 1), (262, 1)])
def test_blocks_divide_the_columns(columns: int, width: int) -> None:
    assert block_width(columns) == width
    x = torch.randn(40, columns, generator=torch.Generator().manual_seed(0))
    whole = x.T @ x / 40
    gram = GroupGram.of(x)
    torch.testing.assert_close(gram.diagonal, whole.diagonal())
    for place, block in enumerate(gram.blocks):
        part = slice(place * width, (place + 1) * width)
        torch.testing.assert_close(block, whole[part, part])
    factor = torch.rand(columns, generator=torch.Generator().manual_seed(1)) + 0.5
    torch.testing.assert_close(gram.divided(factor).blocks, GroupGram.of(x / factor).blocks)


def test_smaller_groups_are_parts_of_blocks_and_odd_ones_have_diagonals() -> None:
    x = torch.randn(50, 256, generator=torch.Generator().manual_seed(0))
    gram, whole = GroupGram.of(x), x.T @ x / 50
    for place, block in enumerate(gram.of_groups(32)):
        part = slice(place * 32, (place + 1) * 32)
        torch.testing.assert_close(block, whole[part, part])
    assert gram.of_groups(256).shape == (1, 256)
