"""Codecs: what is rounded can be stored, is decoded to the same numbers, and takes the bytes of its layout."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bitbudget.grids import BF16, FP16, FP32, U8, Bilevel, Codec, PackedInt
from bitbudget.grids.codecs import parse_codec

FLOATS = (FP16, BF16, FP32)
INTEGERS = (*(PackedInt(bits) for bits in range(1, 9)), U8)
BILEVEL = st.builds(
    Bilevel, st.integers(1, 8), st.tuples(st.integers(1, 6), st.integers(1, 6)), offset=st.booleans()
)
CODECS = st.one_of(st.sampled_from(FLOATS + INTEGERS), BILEVEL)
SHAPES = st.tuples(st.integers(1, 8), st.integers(1, 8))


@st.composite
def tables(draw: st.DrawFn) -> Tensor:
    """Positive tables: even, nearly constant, over many orders of magnitude, or with zeros among them."""
    rows, groups = draw(SHAPES)
    random = torch.rand(rows, groups, generator=torch.Generator().manual_seed(draw(st.integers(0, 2**31))))
    kind = draw(st.sampled_from(["even", "nearly constant", "wide", "zeros"]))
    scale = 10.0 ** draw(st.integers(-9, 3))
    if kind == "nearly constant":
        return scale * (1 + 1e-5 * random)
    if kind == "wide":
        return 10 ** (12 * random - 9)
    return scale * (random.round() if kind == "zeros" else random)


def decoded(codec: Codec, rounded: Tensor) -> Tensor:
    shape = (rounded.shape[0], rounded.shape[1])
    return codec.decode(codec.tensors(rounded), shape, torch.arange(shape[0]))


@given(codec=CODECS, table=tables())
def test_rounding_comes_to_rest_and_survives_storage(codec: Codec, table: Tensor) -> None:
    rounded = codec.round(table)
    assert torch.equal(codec.round(rounded), rounded)
    assert torch.equal(decoded(codec, rounded), rounded)


@given(codec=CODECS, table=tables())
def test_layout_describes_the_tensors(codec: Codec, table: Tensor) -> None:
    tensors = codec.tensors(codec.round(table))
    layout = codec.layout(tuple(table.shape))
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()} == layout


@given(codec=CODECS, table=tables(), data=st.data())
def test_any_rows_can_be_decoded_alone(codec: Codec, table: Tensor, data: st.DataObject) -> None:
    rounded = codec.round(table)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, len(table) - 1), max_size=5)), dtype=torch.int64)
    part = codec.decode(codec.tensors(rounded), (table.shape[0], table.shape[1]), rows)
    assert torch.equal(part, rounded[rows])


@given(codec=BILEVEL, table=tables())
def test_a_positive_number_stays_positive_in_two_levels(codec: Bilevel, table: Tensor) -> None:
    rounded = codec.round(table)
    assert bool((rounded[table > 0] > 0).all())
    assert bool(rounded.isfinite().all())


@given(codec=CODECS)
def test_text_round_trip(codec: Codec) -> None:
    assert parse_codec(str(codec)) == codec


@pytest.mark.parametrize("text", ["", "u0", "u9", "fp8", "bilevel(6,16)", "bilevel(9,1x1)", "bilevel(3,0x1)", "u٣"])
def test_other_words_are_no_codecs(text: str) -> None:
    assert parse_codec(text) is None


def test_error_of_two_levels_is_half_a_step() -> None:
    table = torch.rand(16, 4, generator=torch.Generator().manual_seed(0)) + 0.5
    for offset in (False, True):
        codec = Bilevel(6, (8, 2), offset)
        stored = codec.tensors(codec.round(table))
        assert float((codec.round(table) - table).abs().max()) <= 0.502 * float(stored["_step"].max())
    assert (codec.round(table) - table).abs().max() < (Bilevel(6, (8, 2)).round(table) - table).abs().max()


def test_a_tile_larger_than_the_table_takes_no_memory() -> None:
    table = torch.rand(3, 5)
    huge = Bilevel(4, (999_999_999, 999_999_999))
    assert torch.equal(huge.round(table), Bilevel(4, (3, 5)).round(table))
    assert torch.equal(decoded(huge, huge.round(table)), huge.round(table))


def test_two_levels_saturate_instead_of_overflowing() -> None:
    table = torch.tensor([[1e9, 1.0], [2e9, 3e30]])
    for offset in (False, True):
        assert bool(Bilevel(3, (2, 2), offset).round(table).isfinite().all())


def test_what_fp16_holds() -> None:
    assert FP16.holds(torch.tensor([1.0, 65504.0, 2.0**-16, 0.0]))
    assert not FP16.holds(torch.tensor([1.0, 70000.0]))
    assert not FP16.holds(torch.tensor([1.0, 2.0**-17]))
    assert BF16.holds(torch.tensor([1e30, 1e-30]))
    assert math.isclose(float(FP16.round(torch.tensor([[FP16.smallest]]))), FP16.smallest)
