"""QuantLinear, QuantEmbedding and TiedLinear: their buffers are the stored tensors, whatever is done to the module."""

import copy

import pytest
import torch
from torch import Tensor, nn

from bitbudget.kernels import QuantEmbedding, QuantLinear, linear
from bitbudget.kernels.linear import TiedLinear
from bitbudget.rounding import nearest
from bitbudget.storage import NATIVE, Choice, StoredWeight

SHAPE = (24, 32)
CHOICES = ("int4:g8", "int8*25%|int3:g4:scale=bilevel(6,4x4,offset)+outliers:5%", "int4:scale=fp32", "int4s:scale=bf16")


def stored(text: str, bias: bool = False) -> StoredWeight:
    weights = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    weight = nearest(weights, Choice.parse(text))
    return StoredWeight.from_tensors(weight.choice, SHAPE, weight.tensors(), torch.ones(SHAPE[0]) if bias else None)


@pytest.mark.parametrize("text", [*CHOICES, "int4/in=scale/act=int8/out=permute", "int2/out=scale"])
def test_state_dict_is_the_native_layout(text: str) -> None:
    choice = Choice.parse(text)
    state = QuantLinear(choice, SHAPE, bias=True).state_dict()
    specs = {spec.name: (spec.dtype, spec.shape) for spec in NATIVE.specs(choice, SHAPE)}
    specs["weight"] = (torch.float32, (0,))  # of the module's dtype, which says what it computes in
    specs["bias"] = (torch.float32, (SHAPE[0],))
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()} == specs
    assert QuantEmbedding(choice, SHAPE).state_dict().keys() == specs.keys() - {"bias"}


@pytest.mark.parametrize("text", CHOICES)
def test_a_state_dict_loads(text: str) -> None:
    weight = stored(text, bias=True)
    module = QuantLinear(weight.choice, SHAPE, bias=True)
    module.load_state_dict(weight.tensors() | {"bias": weight.bias})
    x = torch.randn(3, SHAPE[1])
    assert torch.equal(module(x), linear(x, weight))
    assert torch.equal(QuantLinear.from_stored(weight)(x), linear(x, weight))


@pytest.mark.parametrize("text", CHOICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_change_of_dtype_leaves_the_stored_tensors(text: str, dtype: torch.dtype) -> None:
    weight = stored(text, bias=True)
    for module in (QuantLinear.from_stored(weight), QuantEmbedding.from_stored(weight), nn.ModuleList()):
        outer = nn.Sequential(module).to(dtype)
        if isinstance(module, nn.ModuleList):
            continue
        assert module.weight.dtype == dtype
        for name, tensor in weight.tensors().items():
            assert name == "weight" or torch.equal(outer[0].get_buffer(name), tensor), name
            assert name == "weight" or outer[0].get_buffer(name).dtype == tensor.dtype
    assert QuantLinear.from_stored(weight).to(dtype)(torch.ones(2, 32, dtype=dtype)).dtype == dtype


def test_half_and_bfloat16_and_float() -> None:
    weight = stored("int4:scale=fp32")
    module = QuantLinear.from_stored(weight).half().bfloat16().float()
    assert torch.equal(module.stored().dequantize(), weight.dequantize())


def test_on_the_meta_device_and_back() -> None:
    weight = stored(CHOICES[1])
    module = QuantLinear(weight.choice, SHAPE, device="meta")
    assert all(tensor.is_meta for tensor in module.state_dict().values())
    module.to_empty(device="cpu")
    module.load_state_dict(weight.tensors())
    assert torch.equal(module.stored().dequantize(), weight.dequantize())
    module = QuantLinear(weight.choice, SHAPE, device="meta")
    module.load_state_dict(weight.tensors(), assign=True)
    assert torch.equal(module.stored().dequantize(), weight.dequantize())


def test_nothing_is_trained() -> None:
    module = QuantLinear.from_stored(stored("int4", bias=True))
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert not module(torch.ones(1, 32)).requires_grad


def test_a_module_can_be_copied() -> None:
    module = QuantLinear.from_stored(stored(CHOICES[1], bias=True))
    x = torch.randn(3, 32)
    assert torch.equal(copy.deepcopy(module)(x), module(x))


@pytest.mark.parametrize("text", CHOICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embedding_looks_up_rows_in_its_dtype(text: str, dtype: torch.dtype) -> None:
    weight = stored(text)
    ids = torch.tensor([[0, 5], [5, 23]])
    expected = weight.dequantize()[ids].to(dtype)
    assert torch.equal(QuantEmbedding.from_stored(weight).to(dtype)(ids), expected)
    # A tensor is rounded first, as the module that is replaced does; a number is not.
    root = torch.tensor(3072**0.5)
    scaled = QuantEmbedding.from_stored(weight, multiplier=root).to(dtype)(ids)
    assert torch.equal(scaled, expected * root.to(dtype))
    assert torch.equal(QuantEmbedding.from_stored(weight, multiplier=2.0).to(dtype)(ids), expected * 2)


def test_a_tied_head_has_no_tensors_of_its_own() -> None:
    embedding = QuantEmbedding.from_stored(stored(CHOICES[1]))
    head = TiedLinear(embedding)
    assert list(head.state_dict()) == list(head.parameters()) == list(head.buffers()) == list(head.children()) == []
    x = torch.randn(3, 32)
    torch.testing.assert_close(head(x), x @ embedding.stored().dequantize().T)
    assert nn.Sequential(embedding, head).state_dict().keys() == {f"0.{name}" for name in embedding.state_dict()}
    bias = nn.Parameter(torch.randn(SHAPE[0]), requires_grad=False)
    torch.testing.assert_close(TiedLinear(embedding, bias)(x), head(x) + bias)
    assert head.weight is embedding.weight


def test_a_tied_head_follows_its_embedding() -> None:
    model = nn.ModuleDict({"embedding": QuantEmbedding.from_stored(stored("int4"))})
    model["head"] = TiedLinear(model["embedding"])  # type: ignore[arg-type]
    model.to(torch.bfloat16)
    assert model["head"].weight.dtype == torch.bfloat16
    embedding: Tensor = model["embedding"](torch.tensor([3]))
    assert model["head"](embedding).dtype == torch.bfloat16


def test_fill_shares_memory() -> None:
    weight = stored("int4:g8")
    module = QuantLinear.from_stored(weight)
    assert module.get_buffer("dense.codes").data_ptr() == weight.tensors()["dense.codes"].data_ptr()
    assert "out=24, in=32, choice=int4:g8" in repr(module)
