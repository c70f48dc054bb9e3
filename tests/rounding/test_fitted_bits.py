"""What a fit says of a weight before it is stored is bit for bit what the stored weight gives."""

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bitbudget.calibration.gram import GroupGram
from bitbudget.grids import BF16, FP16
from bitbudget.rounding import fit, nearest
from bitbudget.storage import Choice, Shape
from storage.choice_strategies import rounded_choices

# The checks of types look at a random entry of a tuple.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")

SHAPE = (20, 48)
TEXTS = [
    "int4:g16",
    "int3s:g8",
    "int4:g5:out",
    "int2:g16:range=clip",
    "int3:range=clip+outliers:3%",
    "int2:g16:zero=real:range=clip+outliers:0.5%:bf16",
    "int4:g8:range=clip*25%|int2:g16+outliers:2%",
    "int8*10%|int4:g8*30%|int2:g4:range=clip",
    "int3:g4:zeros=byte:scale=bilevel(6,8x2):range=clip",
    "int4:g8+outliers:100%",
]


def gaussian(shape: Shape = SHAPE, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gram(columns: int = SHAPE[1]) -> GroupGram:
    return GroupGram.of(gaussian((50, columns), seed=7))


def assert_same(weight: Tensor, choice: Choice, own: GroupGram | None) -> None:
    fitted = fit(weight, choice, own)
    expected = fitted.stored().dequantize()
    rows = torch.tensor([len(weight) - 1, 0, 3, 3, 11])
    assert torch.equal(fitted.values(slice(0, len(weight))), expected)
    assert torch.equal(fitted.values(slice(3, 9)), expected[3:9])
    assert torch.equal(fitted.values(rows), expected[rows])
    assert torch.equal(fitted.error(slice(2, 15)), expected[2:15] - weight[2:15].float())
    assert torch.equal(fitted.decoded(torch.float32), expected)
    assert torch.equal(fitted.decoded(torch.bfloat16), expected.bfloat16())
    assert torch.equal(nearest(weight, choice, own).dequantize(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_values_are_those_of_the_stored_weight(text: str, weighted: bool, dtype: torch.dtype) -> None:
    assert_same(gaussian().to(dtype), Choice.parse(text), gram() if weighted else None)


@given(rounded_choices(), st.integers(0, 5))
def test_for_every_choice(case: tuple[Choice, Shape], seed: int) -> None:
    choice, shape = case
    assert_same(gaussian(shape, seed), choice, gram(shape[1]) if seed % 2 else None)


@pytest.mark.parametrize("text", TEXTS)
def test_tiles_change_nothing(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "bilevel" in text:
        pytest.skip("two-level scales move with their neighbours while a range is searched")
    whole = fit(gaussian(), Choice.parse(text), gram()).stored()
    for name in ("TILE_WEIGHTS", "PIECE_WEIGHTS"):
        monkeypatch.setattr(sys.modules["bitbudget.rounding.fitted"], name, 7 * SHAPE[1])
    fitted = fit(gaussian(), Choice.parse(text), gram())
    assert torch.equal(fitted.decoded(torch.float32), whole.dequantize())
    assert all(torch.equal(own, whole.tensors()[name]) for name, own in fitted.stored().tensors().items())


@pytest.mark.parametrize("factor", [1e-4, 1.0, 1e5], ids=["tiny residuals", "plain", "huge residuals"])
def test_one_format_for_the_residuals_of_all_rows(factor: float) -> None:
    """Rows whose own residuals would ask for another format than those of the whole weight."""
    weight = gaussian()
    weight[4] *= factor
    choice = Choice.parse("int3:g8+outliers:40%")
    fitted, stored = fit(weight, choice), nearest(weight, choice)
    for row in range(len(weight)):
        assert torch.equal(fitted.values(slice(row, row + 1)), stored.dequantize()[row : row + 1])
    assert stored.choice.outliers is not None
    assert stored.choice.outliers.values == (BF16 if factor > 1 else FP16)


@pytest.mark.parametrize("factor", [1e-6, 3e5])
def test_ranges_are_searched_against_the_scales_that_are_stored(factor: float) -> None:
    weight, own = gaussian() * factor, gram()
    clip, plain = (nearest(weight, Choice.parse(f"int2:g16{word}"), own) for word in (":range=clip", ""))
    assert clip.choice.dense[0].grid.scale == plain.choice.dense[0].grid.scale == BF16
    matrices = own.of_groups(16)
    errors = []
    for stored in (clip, plain):
        delta = (stored.dequantize() - weight).unflatten(1, (-1, 16)).double()
        errors.append(torch.einsum("rgi,gij,rgj->rg", delta, matrices.double(), delta))
    assert (errors[0] <= errors[1] * (1 + 1e-5)).all()


def test_all_weights_outliers_leave_nothing() -> None:
    weight = gaussian().half()
    fitted = fit(weight, Choice.parse("int4:g8+outliers:100%:fp32"))
    torch.testing.assert_close(fitted.decoded(torch.float32), weight.float(), rtol=0, atol=1e-6)


def test_no_outliers_are_plain_rounding() -> None:
    plain, none = (fit(gaussian(), Choice.parse(text)) for text in ("int4:g16", "int4:g16+outliers:0.001%"))
    assert none.positions is not None and len(none.positions) == 0
    assert torch.equal(plain.decoded(torch.float32), none.decoded(torch.float32))
