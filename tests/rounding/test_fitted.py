"""A fitted weight gives exactly what its stored form will decode to."""

import pytest
import torch

from bitbudget.calibration.gram import GroupGram
from bitbudget.rounding import fit, nearest
from bitbudget.storage import Choice

TEXTS = (
    "int3:g32",
    "int4s:g64",
    "int2:g64:range=clip",
    "int3:g32:range=clip+outliers:1%",
    "int8:g32*25%|int3:g32:range=clip+outliers:5%",
    "int4:g8:out",
    "int3:g128:zero=real",
    "int4:g64:scale=bilevel(6,16x1)",
)


@pytest.mark.parametrize("text", TEXTS)
def test_values_are_those_of_the_stored_weight(text: str) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(40, 128, generator=generator).bfloat16()
    gram = GroupGram.of(torch.randn(64, 128, generator=generator))
    fitted = fit(weight, Choice.parse(text), gram)
    decoded = nearest(weight, Choice.parse(text), gram).dequantize()
    assert torch.equal(fitted.decoded(torch.float32), decoded)
    assert torch.equal(fitted.values(torch.tensor([7, 0, 33])), decoded[[7, 0, 33]])
    assert torch.equal(fitted.error(slice(5, 21)), decoded[5:21] - weight[5:21].float())


def test_a_gram_matrix_decides_where_ranges_are_cut() -> None:
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(64, 128, generator=generator)
    inputs = torch.randn(256, 128, generator=generator) * torch.logspace(-2, 1, 128)
    choice = Choice.parse("int2:g128:range=clip")
    blind, seeing = (nearest(weight, choice, gram).dequantize() - weight for gram in (None, GroupGram.of(inputs)))
    assert float((inputs @ seeing.T).square().mean()) < float((inputs @ blind.T).square().mean())
