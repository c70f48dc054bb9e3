"""Round to nearest: every weight takes the nearest value of its group, tiles and outliers change nothing else."""

import sys

import pytest
import torch
from torch import Tensor

from bitbudget.errors import InputError
from bitbudget.grids import unpack
from bitbudget.rounding import nearest
from bitbudget.storage import Choice, DensePart

SHAPE = (24, 32)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape or SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(
    "setting", ["", ":g8", ":g8:out", "s:g8", ":zero=half", ":zero=real:scale=fp32", ":scale=bf16"]
)
def test_no_other_code_is_nearer(bits: int, setting: str) -> None:
    weights = gaussian()
    weight = nearest(weights, Choice.parse(f"int{bits}{setting}"))
    part = weight.parts[0]
    assert isinstance(part, DensePart)
    parameters = part.parameters(torch.arange(SHAPE[0]))
    every = torch.stack([
        part.format.grid.decode(torch.full(SHAPE, code, dtype=torch.uint8), parameters) for code in range(2**bits)
    ])
    best = (every - weights).abs().amin(0)
    torch.testing.assert_close((weight.dequantize() - weights).abs(), best, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "text", ["int4:g8", "int4:g8:out", "int3*25%|int2:g4+outliers:5%", "int4:scale=bilevel(6,5x2)"]
)
def test_tiles_change_nothing(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = nearest(gaussian(), Choice.parse(text))
    # By the table of modules: the package's `nearest` is the function.
    for name in ("TILE_WEIGHTS", "PIECE_WEIGHTS"):
        monkeypatch.setattr(sys.modules["bitbudget.rounding.fitted"], name, 5 * SHAPE[1])
    tiled = nearest(gaussian(), Choice.parse(text))
    assert whole.choice == tiled.choice
    assert all(torch.equal(tensor, tiled.tensors()[name]) for name, tensor in whole.tensors().items())


def test_parameters_are_rounded_before_codes_are_chosen() -> None:
    weights = gaussian(8, 512)
    by_stored = nearest(weights, Choice.parse("int8:scale=bf16"))
    exact = nearest(weights, Choice.parse("int8:scale=fp32"))
    scale = by_stored.tensors()["dense.scale"].float()
    codes = unpack(exact.tensors()["dense.codes"], 8, 512).float()
    parameters = exact.parts[0].parameters(torch.arange(8))  # type: ignore[attr-defined]
    rounded_late = scale * (codes - parameters.zero)
    assert (by_stored.dequantize() - weights).square().sum() < 0.99 * (rounded_late - weights).square().sum()


@pytest.mark.parametrize(
    "magnitude, codec", [(1.0, "int4:g8"), (1e-8, "int4:g8:scale=bf16"), (1e8, "int4:g8:scale=bf16")]
)
def test_the_choice_says_where_fp16_was_not_enough(magnitude: float, codec: str) -> None:
    weights = gaussian() * magnitude
    weight = nearest(weights, Choice.parse("int4:g8"))
    assert str(weight.choice) == codec
    assert weight.nbytes == Choice.parse("int4:g8").nbytes(SHAPE)
    relative = (weight.dequantize() - weights).square().sum() / weights.square().sum()
    assert float(relative) < 0.01


def test_residuals_beyond_fp16_live_in_bf16() -> None:
    weights = gaussian()
    weights[0, 0] = 1e6
    weight = nearest(weights, Choice.parse("int4:g8+outliers:1"))
    assert str(weight.choice) == "int4:g8+outliers:1:bf16"
    assert abs(float(weight.dequantize()[0, 0]) - 1e6) < 4000


def test_a_stated_codec_is_kept() -> None:
    weight = nearest(gaussian() * 1e-8, Choice.parse("int4:g8:scale=fp32+outliers:1:fp32"))
    assert str(weight.choice) == "int4:g8:scale=fp32+outliers:1:fp32"


@pytest.mark.parametrize("text", ["int4:g5", "int8*1%|int4", "fp16"])
def test_refusals(text: str) -> None:
    with pytest.raises(InputError, match=r"A weight \[24, 32\] cannot be rounded to"):
        nearest(gaussian(), Choice.parse(text))


def test_a_view_is_as_good_as_a_copy() -> None:
    weights = gaussian(32, 24)
    choice = Choice.parse("int4:g8+outliers:3%")
    view, copy = nearest(weights.T, choice), nearest(weights.T.contiguous(), choice)
    assert all(torch.equal(tensor, copy.tensors()[name]) for name, tensor in view.tensors().items())


def test_outliers_lower_the_error_and_more_of_them_lower_it_more() -> None:
    weights = gaussian(64, 64).pow(3)
    texts = ["int3:g16", "int3:g16+outliers:0.5%", "int3:g16+outliers:2%", "int3:g16+outliers:10%"]
    errors = [float((nearest(weights, Choice.parse(text)).dequantize() - weights).square().sum()) for text in texts]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]


def test_a_mix_lies_between_its_widths() -> None:
    weights = gaussian(64, 64)
    texts = ["int2:g16", "int4:g16*25%|int2:g16", "int4:g16*75%|int2:g16", "int4:g16"]
    errors = [float((nearest(weights, Choice.parse(text)).dequantize() - weights).square().sum()) for text in texts]
    assert errors == sorted(errors, reverse=True)
