"""The reference kernels against the plainest formula."""

import pytest
import torch
from torch import Tensor

from bitbudget.kernels import linear, lookup
from bitbudget.kernels.reference import round_activations
from bitbudget.rounding import nearest
from bitbudget.storage import NATIVE, Activation, Choice, Shape, StoredWeight

SHAPE = (24, 32)
CHOICES = ("int4:g8", "int4s:g8:out", "int8*25%|int3:g4+outliers:5%")


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_maps(text: str, maps: str, bias: Tensor | None = None, shape: Shape = SHAPE) -> StoredWeight:
    """A rounded weight to which maps are added, as a method that searches them will do."""
    plain = nearest(gaussian(*shape), Choice.parse(text))
    choice = Choice.parse(f"{plain.choice}{maps}")
    generator = torch.Generator().manual_seed(7)
    tensors = plain.tensors()
    for spec in NATIVE.specs(choice, shape):
        if spec.name == "output_map.rows":
            tensors[spec.name] = torch.randperm(shape[0], generator=generator).to(spec.dtype)
        elif spec.name not in tensors:
            tensors[spec.name] = torch.rand(spec.shape, generator=generator) + 0.5
    return StoredWeight.from_tensors(choice, shape, tensors, bias)


@pytest.mark.parametrize("text", CHOICES)
@pytest.mark.parametrize("batch", [(), (0,), (5,), (2, 3)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_multiplies_with_the_decoded_weight(text: str, batch: tuple[int, ...], with_bias: bool) -> None:
    bias = gaussian(SHAPE[0], seed=3) if with_bias else None
    weight = with_maps(text, "", bias)
    x = gaussian(*batch, SHAPE[1], seed=1)
    expected = x @ weight.dequantize().T + (0 if bias is None else bias)
    torch.testing.assert_close(linear(x, weight), expected)


@pytest.mark.parametrize(
    "maps", ["/in=scale", "/out=scale", "/out=permute", "/act=int8:g8", "/in=scale/act=int4/out=permute"]
)
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_with_maps(maps: str, with_bias: bool) -> None:
    bias = gaussian(SHAPE[0], seed=3) if with_bias else None
    weight = with_maps("int4:g8", maps, bias)
    x = gaussian(6, SHAPE[1], seed=1)
    inside = x * weight.input_map["scale"] if "in=scale" in maps else x
    if weight.choice.activation:
        inside = round_activations(inside, weight.choice.activation)
    product = inside @ weight.dequantize().T
    expected = torch.empty_like(product)
    for row in range(SHAPE[0]):
        target = int(weight.output_map["rows"][row]) if "permute" in maps else row
        expected[:, target] = product[:, row]
    if "out=scale" in maps:
        expected = expected * weight.output_map["scale"]
    torch.testing.assert_close(linear(x, weight), expected + (0 if bias is None else bias))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_linear_answers_in_the_dtype_of_its_input(dtype: torch.dtype) -> None:
    weight = with_maps("int4:g8", "/in=scale/out=scale", gaussian(SHAPE[0]))
    x = gaussian(5, SHAPE[1], seed=1)
    result = linear(x.to(dtype), weight)
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), linear(x, weight), rtol=0.05, atol=0.2)


def test_linear_leaves_its_input_alone() -> None:
    x = gaussian(5, SHAPE[1])
    before = x.clone()
    linear(x, with_maps("int4", "/in=scale/act=int8"))
    assert torch.equal(x, before)


def test_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = with_maps("int8*25%|int3:g4+outliers:5%", "/out=permute", gaussian(SHAPE[0]))
    x = gaussian(5, SHAPE[1])
    whole = linear(x, weight)
    monkeypatch.setattr("bitbudget.storage.stored.TILE_BYTES", 7 * 4 * SHAPE[1])
    assert len(weight.tiles()) == 4
    torch.testing.assert_close(linear(x, weight), whole)


def test_no_tile_exceeds_32_mebibytes(monkeypatch: pytest.MonkeyPatch) -> None:
    choice, shape = Choice.parse("int2"), (3, 2**22)
    tensors = {spec.name: torch.zeros(spec.shape, dtype=spec.dtype) for spec in NATIVE.specs(choice, shape)}
    sizes: list[int] = []
    decode = StoredWeight.dequantize

    def watched(self: StoredWeight, rows: slice, dtype: torch.dtype) -> Tensor:
        tile = decode(self, rows, dtype)
        sizes.append(tile.nbytes)
        return tile

    monkeypatch.setattr(StoredWeight, "dequantize", watched)
    linear(torch.ones(1, 2**22), StoredWeight.from_tensors(choice, shape, tensors))
    assert sizes == [32 * 2**20, 16 * 2**20]


@pytest.mark.parametrize("bits, group", [(8, None), (8, 8), (4, 4)])
def test_activations_are_rounded_per_token_and_group(bits: int, group: int | None) -> None:
    x = gaussian(3, 5, 16)
    x[0, 0] = 0
    rounded = round_activations(x, Activation(bits, group))
    limit = 2 ** (bits - 1) - 1
    for token in range(5):
        for start in range(0, 16, group or 16):
            values, found = (t[1, token, start : start + (group or 16)] for t in (x, rounded))
            scale = values.abs().max() / limit
            assert float((found - values).abs().max()) <= 0.5001 * float(scale)
            codes = found / scale
            torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-4)
            assert int(codes.abs().max().round()) == limit
    assert bool((rounded[0, 0] == 0).all())
    torch.testing.assert_close(round_activations(rounded, Activation(bits, group)), rounded)


@pytest.mark.parametrize("text", CHOICES)
def test_lookup_is_indexing(text: str) -> None:
    weight = nearest(gaussian(*SHAPE), Choice.parse(text))
    ids = torch.tensor([[3, 0, 3], [23, 7, 0]])
    assert torch.equal(lookup(ids, weight), weight.dequantize()[ids])
    assert torch.equal(lookup(ids.to(torch.int32), weight), weight.dequantize()[ids])
    assert lookup(torch.empty(2, 0, dtype=torch.int64), weight).shape == (2, 0, 32)


@pytest.mark.parametrize("text", CHOICES)
@pytest.mark.parametrize("outside", [-1, 24])
def test_lookup_refuses_ids_outside_the_vocabulary(text: str, outside: int) -> None:
    weight = nearest(gaussian(*SHAPE), Choice.parse(text))
    with pytest.raises(IndexError, match="vocabulary of 24"):
        lookup(torch.tensor([0, outside]), weight)
