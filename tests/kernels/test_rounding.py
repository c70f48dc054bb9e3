"""Compiled rounding against its plain twins in `grids`: nearest values to the bit, errors of tried ranges up to fp32 sums."""

import pytest
import torch
from torch import Tensor

from bitbudget.calibration.gram import GroupGram
from bitbudget.grids import BF16, Grid, GroupParameters
from bitbudget.grids.clip import clipped
from bitbudget.grids.clip import range_errors as plain_range_errors
from bitbudget.kernels import rounding, supported_isas
from bitbudget.kernels.extension import extension
from bitbudget.kernels.rounding import nearest, range_errors
from bitbudget.rounding import fit
from bitbudget.storage import Choice

pytestmark = pytest.mark.skipif(extension() is None, reason="the package was installed without compiled kernels")

GRIDS = [
    Grid(levels=4, range="clip"),
    Grid(levels=3, zero="none", range="clip"),
    Grid(levels=8, zero="real", scale=BF16, range="clip"),
    Grid(levels=16, zero="half", range="clip"),
    Grid(levels=256, range="clip"),
]


def weights_of(rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * torch.rand(rows, columns, generator=generator) ** -0.5


def grouped(grid: Grid, group: int) -> Grid:
    return Grid(grid.levels, grid.zero, group, scale=grid.scale, range="clip")


def tried(grid: Grid, weights: Tensor, tries: int) -> GroupParameters:
    """Parameters of ranges that get narrower, [tries, rows, groups]."""
    low, high = grid.limits(weights)
    shrinks = torch.linspace(1, 0.5, tries).view(-1, 1, 1)
    return grid.stored_all(grid.spanning(low * shrinks, high * shrinks))


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.levels}-{grid.zero}")
@pytest.mark.parametrize(("rows", "groups", "group"), [(1, 1, 1), (3, 2, 5), (17, 3, 16), (5, 2, 33), (40, 2, 128)])
def test_nearest_values_are_the_same_bits(isa: str, grid: Grid, rows: int, groups: int, group: int) -> None:
    grid, weights = grouped(grid, group), weights_of(rows, groups * group)
    parameters = grid.stored(grid.fit(weights))
    assert torch.equal(nearest(grid, weights, parameters, isa), grid.nearest(weights, parameters))
    narrow = grid.stored(grid.fit(weights * 0.3))  # most weights beyond the ends
    assert torch.equal(nearest(grid, weights, narrow, isa), grid.nearest(weights, narrow))


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("tries", [1, 2, 3, 10])
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.levels}-{grid.zero}")
@pytest.mark.parametrize(("rows", "groups", "group"), [(1, 1, 1), (3, 2, 5), (17, 3, 16), (5, 2, 35), (40, 2, 128)])
def test_errors_of_tries_are_those_of_the_output(isa: str, tries: int, grid: Grid, rows: int, groups: int, group: int) -> None:
    grid, weights = grouped(grid, group), weights_of(rows, groups * group)
    x = torch.randn(200, groups * group, generator=torch.Generator().manual_seed(1))
    gram = torch.einsum("tgi,tgj->gij", x.view(200, groups, group), x.view(200, groups, group)) / 200
    parameters = tried(grid, weights, tries)
    found = range_errors(grid, weights, None, parameters, gram, isa)
    expected = plain_range_errors(grid, weights.double(), None, parameters, gram.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.mean()))


@pytest.mark.parametrize("isa", supported_isas())
def test_weights_that_are_no_contiguous_matrix(isa: str) -> None:
    grid, weights = grouped(GRIDS[0], 16), weights_of(64, 48).T
    gram = GroupGram.of(torch.randn(99, 64, generator=torch.Generator().manual_seed(2))).of_groups(16).mT
    parameters = tried(grid, weights, 4)
    found = range_errors(grid, weights, None, parameters, gram, isa)
    torch.testing.assert_close(found, plain_range_errors(grid, weights, None, parameters, gram), rtol=1e-4, atol=1e-5)
    first = parameters.at(torch.tensor(0))
    assert torch.equal(nearest(grid, weights, first, isa), grid.nearest(weights, first))


@pytest.mark.parametrize("isa", supported_isas())
def test_a_weight_that_is_no_number_stays_none(isa: str) -> None:
    grid, weights = grouped(GRIDS[0], 16), weights_of(2, 32)
    parameters = tried(grid, weights, 2)
    weights[1, 20] = torch.nan
    assert nearest(grid, weights, parameters.at(torch.tensor(0)), isa).isnan().nonzero().tolist() == [[1, 20]]
    errors = range_errors(grid, weights, None, parameters, torch.eye(16).expand(2, 16, 16), isa)
    assert errors.isnan().nonzero().tolist() == [[0, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize("text", ["int2:g32:range=clip", "int3s:g64:range=clip", "int4:g128:range=clip+outliers:0.5%"])
@pytest.mark.parametrize("rows", [1, 130])
def test_a_search_finds_what_the_plain_one_finds(text: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same range almost everywhere; where two are as good to rounding, errors are."""
    weight, x = weights_of(rows, 256).bfloat16(), torch.randn(300, 256, generator=torch.Generator().manual_seed(3))
    gram = GroupGram.of(x)
    fast = fit(weight, Choice.parse(text), gram)
    monkeypatch.setattr(rounding, "extension", lambda: None)
    plain = fit(weight, Choice.parse(text), gram)
    same = fast.parts[0].parameters.scale == plain.parts[0].parameters.scale
    assert same.float().mean() > 0.99
    errors = [(x @ one.error(slice(0, rows)).T).square().mean() for one in (fast, plain)]
    torch.testing.assert_close(errors[0], errors[1], rtol=1e-4, atol=0)


def test_a_search_is_left_to_torch_where_there_is_no_kernel_for_it() -> None:
    """Diagonals, no weighting, outliers on a grid without a zero, groups longer than a block."""
    grid, weights = grouped(GRIDS[3], 16), weights_of(8, 32)
    keep = weights.abs() < 1.5
    for weighting in (None, torch.rand(2, 16), torch.eye(16).expand(2, 16, 16)):
        fast = clipped(grid, weights, keep, weighting, range_errors)
        assert torch.equal(fast.scale, clipped(grid, weights, keep, weighting).scale)


def test_sizes_are_checked() -> None:
    compiled = extension()
    assert compiled is not None
    weights, table, gram, errors = weights_of(4, 32), torch.ones(4, 2), torch.zeros(2, 16, 16), torch.empty(1, 4, 2)
    matrix, tables = [weights.data_ptr(), 512, 4, 32, 16], [table.data_ptr(), table.data_ptr(), 32]
    good = [0, *matrix, *tables, 3, weights.data_ptr(), 512]
    compiled.nearest(*good)
    wrong = [(0, 99), (1, 0), (2, 508), (3, 5), (4, 31), (5, 15), (5, 0), (8, 28), (9, 0), (9, 256), (10, 0), (11, 511)]
    for place, value in wrong:
        with pytest.raises(ValueError, match=r"."):
            compiled.nearest(*good[:place], value, *good[place + 1 :])
    good = [0, *matrix, 1, *tables, 3, gram.data_ptr(), 2048, errors.data_ptr(), 32]
    compiled.range_errors(*good)
    wrong = [(2, 508), (3, -1), (4, 31), (5, 64), (6, 0), (6, 2), (9, 31), (10, 0), (11, 0), (12, 2047), (13, 2), (14, 31)]
    for place, value in wrong:
        with pytest.raises(ValueError, match=r"."):
            compiled.range_errors(*good[:place], value, *good[place + 1 :])
