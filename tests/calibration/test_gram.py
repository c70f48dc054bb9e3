"""The Gram matrix of a layer's input, as blocks."""

import pytest
import torch
from torch import Tensor

from bitbudget.calibration.gram import GroupGram, block_width, gram_sum


def inputs(columns: int, tokens: int = 30) -> Tensor:
    return torch.randn(tokens, columns, generator=torch.Generator().manual_seed(columns))


@pytest.mark.parametrize(
    "columns, width", [(8, 1), (16, 16), (64, 64), (128, 128), (150, 75), (256, 128), (4096, 128), (17, 17), (131, 1), (192, 96)]
)
def test_blocks_cover_the_columns(columns: int, width: int) -> None:
    assert block_width(columns) == width
    assert GroupGram.of(inputs(columns)).blocks.shape == (columns // width, width, width)


@pytest.mark.parametrize("group", [16, 32, 48, 96])
def test_groups_within_blocks_have_their_matrices(group: int) -> None:
    x = inputs(192)
    whole = x.T @ x / len(x)
    found = GroupGram.of(x).of_groups(group)
    assert found.shape == (192 // group, group, group)
    for number, matrix in enumerate(found):
        own = slice(number * group, (number + 1) * group)
        torch.testing.assert_close(matrix, whole[own, own])


@pytest.mark.parametrize("columns, group", [(192, 64), (192, 192), (150, 50), (8, 8), (8, 4), (64, 1), (131, 131)])
def test_other_groups_have_diagonals(columns: int, group: int) -> None:
    x = inputs(columns)
    found = GroupGram.of(x).of_groups(group)
    assert found.shape == (columns // group, group)
    torch.testing.assert_close(found.flatten(), x.square().mean(0))


def test_divided_is_the_gram_of_divided_inputs() -> None:
    x, factor = inputs(64), torch.linspace(0.25, 4, 64)
    torch.testing.assert_close(GroupGram.of(x).divided(factor).blocks, GroupGram.of(x / factor).blocks)
    same = GroupGram.of(x)
    assert same.divided(None) is same


def test_sums_add_up() -> None:
    x = inputs(96)
    torch.testing.assert_close(gram_sum(x[:11]) + gram_sum(x[11:]), gram_sum(x), rtol=1e-5, atol=1e-4)
