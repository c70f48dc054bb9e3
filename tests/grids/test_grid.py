"""Uniform integer grids: range rules, error, zero and constant groups, both axes, huge and tiny values."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bitbudget.grids import BF16, FP16, FP32, Bilevel, Float, Grid, GroupParameters
from bitbudget.grids.grid import Axis

BITS = (2, 3, 4, 5, 6, 8)
ZEROS = ("none", "half", "int", "real")


def gaussian(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def per_row(grid: Grid, table: GroupParameters, weights: Tensor) -> GroupParameters:
    shape = (weights.shape[0], weights.shape[1])
    return table.at(grid.table_rows(torch.arange(shape[0]), shape))


def rounded(grid: Grid, weights: Tensor, table: GroupParameters | None = None) -> Tensor:
    """Weights rounded to the grid with stored parameters (by default their own)."""
    parameters = per_row(grid, table or grid.stored(grid.fit(weights)), weights)
    return grid.decode(grid.encode(weights, parameters), parameters)


def spread(grid: Grid, table: Tensor, weights: Tensor) -> Tensor:
    """A parameter for every single weight, written in the plainest way."""
    length = grid.group or weights.shape[grid.grouped_dimension]
    whole = torch.empty_like(weights)
    for row in range(weights.shape[0]):
        for column in range(weights.shape[1]):
            place = (row // length, column) if grid.axis == "out" else (row, column // length)
            whole[row, column] = table[place]
    return whole


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    scale = draw(st.sampled_from([FP16, BF16, FP32, Bilevel(6, (4, 2)), Bilevel(8, (2, 1), offset=True)]))
    return Grid(
        levels=2 ** draw(st.sampled_from(BITS)),
        zero=draw(st.sampled_from(ZEROS)),
        group=draw(st.sampled_from([None, 1, 4, 8])),
        axis=draw(st.sampled_from(["in", "out"])),
        scale=scale,
    )


@st.composite
def weights_of(draw: st.DrawFn) -> Tensor:
    rows, columns = draw(st.sampled_from([(8, 8), (8, 16), (16, 8), (24, 8)]))
    weights = gaussian(rows, columns, draw(st.integers(0, 2**31))) * 10.0 ** draw(st.integers(-3, 3))
    kind = draw(st.sampled_from(["plain", "positive", "zero rows", "constant rows", "shifted"]))
    if kind == "positive":
        weights = weights.abs()
    if kind == "zero rows":
        weights[::2] = 0
    if kind == "constant rows":
        weights[::2] = weights[::2, :1]
    return weights + (10 * weights.abs().max() if kind == "shifted" else 0)


@given(grid=grids(), weights=weights_of())
def test_error_within_the_range_is_half_a_step(grid: Grid, weights: Tensor) -> None:
    table = grid.stored(grid.fit(weights))
    scale = spread(grid, table.scale, weights)
    fixed = {"none": grid.levels / 2, "half": (grid.levels - 1) / 2}.get(grid.zero, 0.0)
    zero = torch.full_like(scale, fixed) if table.zero is None else spread(grid, table.zero, weights)
    low, high = -zero * scale, (grid.levels - 1 - zero) * scale
    inside = (weights >= low) & (weights <= high)
    error = (rounded(grid, weights, table) - weights).abs()
    assert bool((error <= scale * 0.5001)[inside].all())
    # Outside only what rounding the parameters cuts off: half a step, and the error of the scale over all levels.
    if isinstance(grid.scale, Float) and grid.scale.holds(table.scale):
        lost = {FP16: 2**-11, BF16: 2**-8, FP32: 2**-23}[grid.scale] * grid.levels + 2**-11 * grid.levels
        assert bool((error <= scale * (0.501 + lost)).all())


@given(grid=grids(), weights=weights_of())
def test_values_of_the_grid_are_kept(grid: Grid, weights: Tensor) -> None:
    table = grid.stored(grid.fit(weights))
    once = rounded(grid, weights, table)
    assert torch.equal(rounded(grid, once, table), once)
    assert bool(once.isfinite().all())


@given(grid=grids(), weights=weights_of())
def test_stored_parameters_come_to_rest(grid: Grid, weights: Tensor) -> None:
    table = grid.stored(grid.fit(weights))
    assert bool((table.scale > 0).all())
    assert torch.equal(grid.scale.round(table.scale), table.scale)
    if table.zero is not None and grid.zeros is not None:
        assert torch.equal(grid.zeros.round(table.zero), table.zero)


@pytest.mark.parametrize("bits", BITS)
def test_symmetric_scale_is_that_of_compressed_tensors(bits: int) -> None:
    weights = gaussian(4, 32)
    scale = Grid(2**bits, zero="none", group=16).fit(weights).scale
    greatest = weights.view(4, 2, 16).abs().amax(-1)
    torch.testing.assert_close(scale, greatest / ((2**bits - 1) / 2))
    assert bits != 4 or torch.allclose(scale, greatest / 7.5)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("sign", [1, -1])
def test_an_asymmetric_grid_holds_zero_exactly(bits: int, sign: int) -> None:
    grid = Grid(2**bits, group=16)
    weights = sign * (gaussian(4, 32).abs() + 3)  # zero is far outside
    weights[:, 5] = 0
    assert bool((rounded(grid, weights)[:, 5] == 0).all())
    zero = grid.stored(grid.fit(weights)).zero
    assert zero is not None
    assert bool((zero == (0 if sign > 0 else 2**bits - 1)).all())


@pytest.mark.parametrize("bits", BITS)
def test_a_grid_with_both_ends_fits_itself(bits: int) -> None:
    """Refitting min-max to decoded weights finds the same grid if both ends occur."""
    grid = Grid(2**bits, scale=FP32)
    codes = torch.arange(2**bits, dtype=torch.uint8).repeat(3, 1)
    table = GroupParameters(torch.tensor([[0.5], [0.25], [3.0]]), torch.tensor([[1.0], [0.0], [2.0**bits - 1]]))
    values = grid.decode(codes, table)
    assert torch.equal(rounded(grid, values), values)


@pytest.mark.parametrize("zero", ZEROS)
@pytest.mark.parametrize("axis", ["in", "out"])
def test_zero_groups_and_single_columns(zero: str, axis: Axis) -> None:
    for shape in ((8, 1), (1, 8), (1, 1), (4, 4)):
        grid = Grid(16, zero=zero, axis=axis)  # type: ignore[arg-type]
        nothing = rounded(grid, torch.zeros(shape))
        # Half-way grids have no zero: a group of zeros becomes half of the smallest scale.
        assert bool((nothing.abs() <= (2.0**-25 if zero == "half" else 0)).all())
        weights = gaussian(*shape)
        assert rounded(grid, weights).shape == shape


def test_constant_rows_are_nearly_exact() -> None:
    weights = torch.tensor([[3.7] * 8, [-0.011] * 8])
    torch.testing.assert_close(rounded(Grid(16), weights), weights, rtol=2e-3, atol=0)
    torch.testing.assert_close(rounded(Grid(4, zero="half"), weights), weights, rtol=2e-3, atol=0)


def test_groups_along_out_are_those_of_the_transposed_weight() -> None:
    weights = gaussian(16, 6)
    for group in (None, 4):
        along_out = rounded(Grid(16, group=group, axis="out"), weights)
        assert torch.equal(along_out, rounded(Grid(16, group=group), weights.T.contiguous()).T)


@pytest.mark.parametrize("magnitude", [1e-30, 1e-9, 1e9, 1e30])
def test_scales_beyond_fp16_live_in_bf16(magnitude: float) -> None:
    weights = gaussian(4, 16) * magnitude
    assert not FP16.holds(Grid(16).fit(weights).scale)
    result = rounded(Grid(16, scale=BF16), weights)
    assert float((result - weights).abs().max() / weights.abs().max()) < 0.06


def test_a_scale_that_would_vanish_becomes_the_smallest() -> None:
    grid = Grid(16, zero="none")
    table = grid.stored(GroupParameters(torch.tensor([[1e-12]]), None))
    assert float(table.scale) == 2.0**-24


@pytest.mark.parametrize("offset", [False, True])
def test_a_group_of_zeros_does_not_spoil_the_scales_of_its_tile(offset: bool) -> None:
    grid = Grid(16, group=4, scale=Bilevel(6, (4, 4), offset))
    weights = 0.01 * gaussian(4, 16)
    alone = (rounded(grid, weights) - weights)[1:].square().sum()
    weights[0] = 0
    assert (rounded(grid, weights) - weights).square().sum() < 1.5 * alone
    assert bool((rounded(grid, weights)[0] == 0).all())


def test_only_kept_weights_count_for_the_range() -> None:
    weights = gaussian(2, 8)
    weights[0, 3] = 100.0
    keep = weights < 50
    without = weights.masked_fill(~keep, 0)
    assert torch.equal(Grid(16).fit(weights, keep).scale, Grid(16).fit(without).scale)


@pytest.mark.parametrize("levels, bits", [(2, 1), (3, 2), (4, 2), (5, 3), (16, 4), (256, 8)])
def test_bits_of_levels(levels: int, bits: int) -> None:
    assert Grid(levels).bits == bits
    assert replace(Grid(levels), zero="none").zeros is None


def test_table_shapes() -> None:
    assert Grid(16, group=4).table_shape((8, 12)) == (8, 3)
    assert Grid(16, group=4, axis="out").table_shape((8, 12)) == (2, 12)
    assert Grid(16).table_shape((8, 12)) == (8, 1)
    assert Grid(16, group=5).divides((8, 12)) is False
    assert Grid(16, group=4, axis="out").divides((8, 13)) is True
    assert Grid(16).divides((8, 0)) is False
