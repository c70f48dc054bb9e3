"""Stored weights: what is refused, rows alone, outliers, mixes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bitbudget.errors import InputError
from bitbudget.rounding import nearest
from bitbudget.storage import Choice, Shape, StoredWeight
from storage.choice_strategies import rounded_choices

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
SHAPE = (12, 32)
MIX = Choice.parse("int8:g16*25%|int3:g8+outliers:5%")


def gaussian(shape: Shape = SHAPE, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(fitting=rounded_choices(), data=st.data())
def test_rows_alone_equal_rows_of_all(fitting: tuple[Choice, Shape], data: st.DataObject) -> None:
    choice, shape = fitting
    weight = nearest(gaussian(shape), choice)
    whole = weight.dequantize()
    rows = torch.tensor(data.draw(st.lists(st.integers(0, shape[0] - 1), max_size=8)), dtype=torch.int64)
    assert torch.equal(weight.dequantize(rows), whole[rows])
    start, stop = sorted(data.draw(st.tuples(st.integers(0, shape[0]), st.integers(0, shape[0]))))
    assert torch.equal(weight.dequantize(slice(start, stop)), whole[start:stop])


@given(fitting=rounded_choices())
def test_tensors_bind_to_the_same_weight(fitting: tuple[Choice, Shape]) -> None:
    choice, shape = fitting
    weight = nearest(gaussian(shape), choice)
    again = StoredWeight.from_tensors(weight.choice, shape, weight.tensors())
    assert torch.equal(again.dequantize(), weight.dequantize())


@pytest.mark.parametrize("name", sorted(nearest(gaussian(), MIX).tensors().keys() - {"weight"}))
def test_refusals_name_the_tensor(name: str) -> None:
    tensors = nearest(gaussian(), MIX).tensors()
    with pytest.raises(InputError, match=f"misses its tensors {name}"):
        StoredWeight.from_tensors(MIX, SHAPE, {key: value for key, value in tensors.items() if key != name})
    with pytest.raises(InputError, match=rf"The tensor {name} of a weight \[12, 32\] stored as .* asks for"):
        StoredWeight.from_tensors(MIX, SHAPE, tensors | {name: tensors[name].to(torch.float64)})
    with pytest.raises(InputError, match=f"The tensor {name} of"):
        StoredWeight.from_tensors(MIX, SHAPE, tensors | {name: tensors[name][:-1]})
    with pytest.raises(InputError, match=rf"does not know: {name}\.more"):
        StoredWeight.from_tensors(MIX, SHAPE, tensors | {f"{name}.more": tensors[name]})


@pytest.mark.parametrize("text", ["bf16", "int4:g5", "int8*1%|int4"])
def test_a_choice_that_does_not_fit_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="can be stored as"):
        StoredWeight.from_tensors(Choice.parse(text), SHAPE, {})
    with pytest.raises(InputError, match="cannot be rounded to"):
        nearest(gaussian(), Choice.parse(text))


@pytest.mark.parametrize("values", ["fp16", "bf16", "fp32"])
def test_outliers_of_all_weights_are_the_rounded_residual(values: str) -> None:
    weights = gaussian()
    weight = nearest(weights, Choice.parse(f"int4:g8+outliers:100%:{values}"))
    # No weight is left to span a range, so the dense part is the group's smallest scale times some code.
    dense = StoredWeight.from_tensors(
        Choice.parse("int4:g8"), SHAPE, {k: v for k, v in weight.tensors().items() if k.startswith("dense.")}
    ).dequantize()
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[values]
    assert torch.equal(weight.dequantize(), dense + (weights - dense).to(dtype).float())


def test_outliers_are_the_largest_weights_and_leave_the_range() -> None:
    weights = gaussian()
    weights[3, 5], weights[7, 0] = 50.0, -60.0
    weight = nearest(weights, Choice.parse("int4:g8+outliers:2"))
    tensors = weight.tensors()
    assert tensors["outliers.columns"].tolist() == [5, 0]
    assert tensors["outliers.row_pointers"].tolist() == [0] * 4 + [1] * 4 + [2] * 5
    others = weights.clone()
    others[3, 5] = others[7, 0] = 0
    without = nearest(others, Choice.parse("int4:g8"))
    assert torch.equal(tensors["dense.scale"], without.tensors()["dense.scale"])
    assert abs(float(weight.dequantize()[3, 5]) - 50) < 0.02


def test_a_share_of_a_tiny_layer_may_be_no_outlier() -> None:
    weight = nearest(gaussian((4, 8)), Choice.parse("int4:g8+outliers:1%"))
    assert weight.tensors()["outliers.values"].shape == (0,)
    assert torch.equal(weight.dequantize(), nearest(gaussian((4, 8)), Choice.parse("int4:g8")).dequantize())


def test_equal_magnitudes_give_the_first_ones() -> None:
    weights = torch.ones(4, 8)
    weights[1] = -1
    pointers = nearest(weights, Choice.parse("int4+outliers:10")).tensors()["outliers.row_pointers"]
    assert pointers.tolist() == [0, 8, 10, 10, 10]


def test_tiny_residuals_are_not_lost_in_fp16() -> None:
    weights = gaussian() * 1e-8
    weight = nearest(weights, Choice.parse("int2s:g8+outliers:10%"))
    assert str(weight.choice) == "int2s:g8:scale=bf16+outliers:10%:bf16"
    plain = nearest(weights, Choice.parse("int2s:g8"))
    assert (weight.dequantize() - weights).square().sum() < 0.7 * (plain.dequantize() - weights).square().sum()


def test_rows_of_a_mix_are_disjoint_ascending_and_all() -> None:
    weight = nearest(gaussian((37, 16)), Choice.parse("int8*10%|int6*25%|int2"))
    rows = [weight.tensors()[f"dense{place}.rows"].long() for place in range(3)]
    assert [len(part) for part in rows] == [4, 9, 24]
    assert all(bool((part.diff() > 0).all()) for part in rows)
    assert sorted(torch.cat(rows).tolist()) == list(range(37))


def test_the_rows_that_lose_most_get_the_wide_format() -> None:
    weights = gaussian((16, 32))
    weights[[2, 9, 11]] *= 20
    weight = nearest(weights, Choice.parse("int8*3|int2"))
    assert weight.tensors()["dense0.rows"].tolist() == [2, 9, 11]
    for row in range(16):
        alone = nearest(weights[row : row + 1], Choice.parse("int8" if row in (2, 9, 11) else "int2"))
        assert torch.equal(weight.dequantize()[row], alone.dequantize()[0])


def test_row_order_of_a_lookup_is_that_of_the_ids() -> None:
    weight = nearest(gaussian(), MIX)
    rows = torch.tensor([5, 0, 5, 11])
    assert torch.equal(weight.dequantize(rows), weight.dequantize()[rows])


def test_tiles_cover_all_rows_within_32_mebibytes() -> None:
    weight = nearest(gaussian((5, 8)), Choice.parse("int4"))
    assert weight.tiles() == [slice(0, 5)]
    wide = StoredWeight(weight.choice, (10, 2**22), weight.parts, weight.names, {}, {})
    assert [(tile.start, tile.stop) for tile in wide.tiles()] == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]
    widest = StoredWeight(weight.choice, (3, 2**24), weight.parts, weight.names, {}, {})
    assert [(tile.start, tile.stop) for tile in widest.tiles()] == [(0, 1), (1, 2), (2, 3)]


def test_decoding_a_few_rows_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = gaussian((40, 32))
    for text in ("int4:g8", "int4:g8:out", "int8*25%|int3+outliers:5%"):
        weight = nearest(weights, Choice.parse(text))
        whole = weight.dequantize()
        monkeypatch.setattr("bitbudget.storage.parts.DECODED_AT_ONCE", 96)
        assert torch.equal(weight.dequantize(), whole)
        assert torch.equal(weight.dequantize(slice(3, 38)), whole[3:38])
        monkeypatch.undo()
