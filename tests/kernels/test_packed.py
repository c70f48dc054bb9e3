"""Weights packed for the CPU kernels: products against the reference, the exact inverse, and what modules make of both."""

import copy
import io
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from bitbudget.errors import InputError
from bitbudget.kernels import QuantEmbedding, QuantLinear, linear, supported_isas, use_kernels
from bitbudget.kernels.inputs import ACTIVATIONS, SharedInputs, rows_of
from bitbudget.kernels.linear import TiedLinear
from bitbudget.kernels.packed import growth, misfit
from bitbudget.kernels.products import OUTLIERS_SPARE_BYTES
from bitbudget.rounding import nearest
from bitbudget.storage import NATIVE, Choice, Shape, StoredWeight

ISAS = supported_isas()
pytestmark = pytest.mark.skipif(not ISAS, reason="the package was installed without its CPU kernels")

CHOICES = (
    "int2:g64", "int3:g32", "int4:g128", "int5:g64", "int6s:g128", "int8:g64", "int3", "int4:zero=real", "int2s:g32:scale=fp32",
    "int4:g32:scale=bf16", "int4:g64:scale=bilevel(6,4x4,offset)", "int8:g64:zeros=byte", "int4:zero=half",
    "int8:g64*10%|int4:g64", "int8:g32*3|int2:g128+outliers:0.5%", "int3:g64+outliers:2%",
    "int4:g64+outliers:10%", "int8:g64*25%|int4:g64+outliers:15%", "int4:g64+outliers:10%/out=permute",
    "int4:g64+outliers:2%:fp32", "int8:g64*10%|int4:g64+outliers:1%:fp32",
    "int4:g64/in=scale", "int4:g64+outliers:1%/out=permute", "int8:g64*25%|int4:g64/out=permute", "int4/in=scale/out=scale",
)  # fmt: skip
ERROR = {"a8": 2e-2, "a16": 1e-4}  # of the largest output


def gaussian(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_maps(text: str, shape: Shape, rounded, bias: bool = False) -> StoredWeight:
    """A rounded weight with the maps that its text asks for, as a method that searches them will write it."""
    choice = Choice.parse(text)
    plain = rounded(text.partition("/")[0], shape, bias)
    tensors, generator = plain.tensors(), torch.Generator().manual_seed(7)
    for spec in NATIVE.specs(choice, shape):
        if spec.name == "output_map.rows":
            tensors[spec.name] = torch.randperm(shape[0], generator=generator).to(spec.dtype)
        elif spec.name not in tensors:
            tensors[spec.name] = torch.rand(spec.shape, generator=generator) + 0.5
    return StoredWeight.from_tensors(choice, shape, tensors, plain.bias)


def packed(weight: StoredWeight, kernels: str = "a16", isa: str | None = None) -> QuantLinear:
    module = QuantLinear.from_stored(weight)
    assert use_kernels(module, kernels, isa) == {}
    assert module.packed is not None
    return module


def assert_near(found: Tensor, expected: Tensor, error: float) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=error * largest)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("text", CHOICES)
def test_products_are_near_the_reference(text: str, isa: str, rounded) -> None:
    for shape in ((100, 256), (16, 128), (37, 384)):
        weight = with_maps(text, shape, rounded, bias=shape[0] > 50)
        for kernels in ACTIVATIONS:
            module = packed(weight, kernels, isa)
            for batch in ((), (1,), (7,), (2, 33)):
                x = gaussian(*batch, shape[1])
                assert_near(module(x), linear(x, weight), ERROR[kernels])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kernels", ACTIVATIONS)
def test_nothing_but_the_activations_is_rounded(kernels: str, isa: str, rounded) -> None:
    """The product with what the activations became is exact to the rounding of fp32."""
    for text in ("int2:g64", "int3:g64", "int4:g64", "int8:g64"):
        weight = rounded(text, (48, 512))
        module, x = packed(weight, kernels, isa), gaussian(9, 512)
        assert module.packed is not None
        found = module(x)
        rounded_x = torch.empty(9, 512)
        module.packed.shared.get(x).quantized.dequantize(
            module.packed.isa, 9, 512, 64, ACTIVATIONS.index(kernels), rounded_x.data_ptr(), rounded_x.nbytes
        )
        exact = rounded_x.double() @ weight.dequantize().double().T
        bound = rounded_x.double().abs() @ weight.dequantize().double().abs().T
        assert bool(((found.double() - exact).abs() <= 1e-5 * bound).all())


@pytest.mark.parametrize("text", CHOICES)
def test_unpacking_is_the_exact_inverse(text: str, rounded) -> None:
    weight = with_maps(text, (100, 256), rounded)
    module = packed(weight)
    stored = weight.tensors()
    for found in (module.tensors(), module.state_dict()):
        assert found.keys() - {"weight"} == stored.keys() - {"weight"}
        for name in found.keys() - {"weight"}:
            assert found[name].dtype == stored[name].dtype and torch.equal(found[name], stored[name]), name
    assert dict(module.dense.named_buffers() if hasattr(module, "dense") else {}) == {}
    use_kernels(module, "reference")
    x = gaussian(3, 256)
    assert module.packed is None and torch.equal(module(x), linear(x, weight))


def test_a_large_weight_is_packed_piece_by_piece(rounded) -> None:
    """More codes than are spread out at once, and a number of rows that no tile divides."""
    weight = rounded("int3:g128", (2003, 4096))
    module = packed(weight)
    assert module.packed is not None
    assert torch.equal(module.tensors()["dense.codes"], weight.tensors()["dense.codes"])
    x = gaussian(2, 4096)
    assert_near(module(x), linear(x, weight), ERROR["a16"])
    assert torch.equal(copy.deepcopy(module)(x), module(x))


def test_parameters_take_no_more_bytes_than_they_need() -> None:
    weights = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    for text, factor, parameters in (
        ("int4:g32", 1.0, 1),
        ("int4:g32:scale=bf16", 1e-9, 2),
        ("int4:scale=fp32", 1.0, 0),
    ):
        module = packed(nearest(factor * weights, Choice.parse(text)))
        assert module.packed is not None and module.packed.parts[0].layout.parameters == parameters


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inputs_of_any_place_and_dtype(dtype: torch.dtype, rounded) -> None:
    weight = rounded("int4:g64+outliers:1%", (50, 128), bias=True)
    module = packed(weight)
    block = gaussian(41, 130)
    transposed = gaussian(128, 5).T
    shifted = torch.empty(128 * 3 + 1)[1:].view(3, 128).copy_(block[:3, :128])
    assert shifted.data_ptr() % 64
    views = [
        block[:, :128],
        block[::3, 1:129],
        transposed,
        shifted,
        block[0, 1:129],
        block[:0, :128],
        block[:1].expand(4, 130)[:, :128],
    ]
    for x in views:
        assert_near(module(x), linear(x, weight), ERROR["a16"])
        assert_near(module(x.to(dtype)), linear(x.to(dtype).float(), weight).to(dtype), 2e-2)
    assert module(torch.empty(2, 0, 128)).shape == (2, 0, 50)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kernels", ACTIVATIONS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so(bad: float, kernels: str, isa: str, rounded) -> None:
    module, x = packed(rounded("int4:g32", (20, 96)), kernels, isa), gaussian(3, 96)
    x[1, 40] = bad
    found = module(x)
    assert bool(found[1].isnan().all()) and bool(found[[0, 2]].isfinite().all())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kernels", ACTIVATIONS)
def test_zeros_and_far_apart_numbers(kernels: str, isa: str, rounded) -> None:
    weight = rounded("int4:g32", (20, 96), bias=True)
    module = packed(weight, kernels, isa)
    assert torch.equal(module(torch.zeros(2, 96)), torch.stack([weight.bias, weight.bias]))  # type: ignore[list-item]
    x = gaussian(4, 96) * torch.tensor([1e-30, 1e-3, 1e3, 1e30])[:, None]
    for found, expected in zip(module(x), linear(x, weight), strict=True):
        assert_near(found, expected, ERROR[kernels])


def test_threads_change_nothing(rounded) -> None:
    weight = rounded("int8:g64*10%|int4:g64+outliers:1%", (300, 256), bias=True)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            module = packed(weight)
            results.append([module(gaussian(n, 256)) for n in (1, 5, 64)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def test_all_shapes_by_chance(rounded) -> None:
    draw = random.Random(0)
    for _ in range(60):
        bits, group = draw.choice((2, 3, 4, 5, 6, 8)), draw.choice((32, 64, 96, 128, None))
        shape = (draw.randint(1, 70), (group or 1) * draw.randint(1, 5) if group else draw.randint(1, 300))
        text = (
            f"int{bits}{draw.choice(('', 's'))}" + (f":g{group}" if group else "") + draw.choice(("", "+outliers:1%"))
        )
        weight = rounded(text, shape, bias=draw.random() < 0.5)
        x = gaussian(draw.randint(1, 20), shape[1], seed=draw.randint(0, 99))
        assert_near(packed(weight, "a16", draw.choice(ISAS))(x), linear(x, weight), ERROR["a16"])


def test_weights_without_kernels_stay_as_they_are(rounded) -> None:
    for text, reason in (
        ("int4:g16:out", "groups run along rows"),
        ("int4:g64/act=int8:g8", "activations are rounded to int8:g8"),
        ("int4:g2", "padded to 32 columns"),
    ):
        weight = with_maps(text, (64, 4096 if "g2" in text else 64), rounded)
        module = QuantLinear.from_stored(weight)
        assert reason in use_kernels(nn.ModuleDict({"layer": module}))["layer"]
        x = gaussian(2, weight.shape[1])
        assert module.packed is None and torch.equal(module(x), linear(x, weight))


def test_damaged_weights_are_not_packed(rounded) -> None:
    sparse = rounded("int4:g32+outliers:1%", (64, 64))
    sparse.tensors()["outliers.columns"][3] = 64
    assert "no sparse matrix" in str(misfit(sparse, ISAS[0]))
    mixed = rounded("int8:g32*25%|int4:g32", (64, 64))
    mixed.tensors()["dense0.rows"][0] = mixed.tensors()["dense0.rows"][1]
    assert "not all rows" in str(misfit(mixed, ISAS[0]))


def test_growth_is_what_packing_takes(rounded) -> None:
    for text in CHOICES:
        if "/in" in text or "bilevel" in text:
            continue
        weight = with_maps(text, (112, 256), rounded)
        module = packed(weight)
        assert module.packed is not None
        maps = sum(tensor.nbytes for name, tensor in weight.tensors().items() if "_map" in name)
        assert module.packed.nbytes - weight.nbytes <= growth(weight.choice, weight.shape) + maps, text
        assert all(part.layout.nbytes == part.packed.nbytes for part in module.packed.parts)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("text", ["int3:g32+outliers:2%", "int8:g64*10%|int4:g64+outliers:2%"])
def test_outliers_are_packed_wherever_they_are(text: str, isa: str) -> None:
    """In 4 bytes each: all in one row, of which a part may have none, or as many in every row."""
    even = gaussian(50, 512)
    lone = even.clone()
    lone[3] *= 100.0
    for weights in (even, lone):
        weight = nearest(weights, Choice.parse(text))
        module = packed(weight, "a16", isa)
        assert module.packed is not None and module.packed.residual is not None
        parts = module.packed.parts
        assert module.packed.residual.within == [*parts]
        pointers = 4 * sum(part.layout.rows + 1 for part in parts)
        assert sum(part.sparse.nbytes for part in parts) <= 4 * 512 + pointers + OUTLIERS_SPARE_BYTES * len(parts)
        for tokens in (1, 3, 70):
            x = gaussian(tokens, 512)
            assert_near(module(x), linear(x, weight), ERROR["a16"])
        assert all(torch.equal(weight.tensors()[name], tensor) for name, tensor in module.packed.tensors().items())


def test_no_such_kernels(rounded) -> None:
    module = QuantLinear.from_stored(rounded("int4", (16, 32)))
    with pytest.raises(InputError, match="no kernels 'a4'.*a8, a16, reference"):
        use_kernels(module, "a4")
    with pytest.raises(InputError, match="no kernels for 'mmx', only for portable"):
        use_kernels(module, "a8", "mmx")


def test_what_is_done_to_modules(rounded) -> None:
    weight = rounded("int8:g64*10%|int4:g64+outliers:1%", (50, 128), bias=True)
    module, x = packed(weight), gaussian(3, 128)
    expected = module(x)
    half = copy.deepcopy(module).to(torch.bfloat16)
    assert half.packed is not None and half.weight.dtype == torch.bfloat16
    assert all(torch.equal(half.tensors()[name], module.tensors()[name]) for name in module.tensors())
    assert torch.equal(copy.deepcopy(module)(x), expected)
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    assert torch.equal(torch.load(saved, weights_only=False)(x), expected)
    other = packed(rounded("int8:g64*10%|int4:g64+outliers:1%", (50, 128), bias=True))
    other.load_state_dict(module.state_dict())
    assert other.packed is None and torch.equal(other(x), linear(x, weight))
    assert module.to("meta").packed is None and module.get_buffer("dense0.codes").is_meta


def test_what_the_kernels_cannot_do_goes_to_the_reference(rounded) -> None:
    weight = rounded("int4:g64", (50, 128))
    module, x = packed(weight), gaussian(3, 128)
    assert torch.equal(module(x.double()), linear(x.double(), weight))
    wanted = x.clone().requires_grad_()
    module(wanted).sum().backward()
    torch.testing.assert_close(wanted.grad, weight.dequantize().sum(0).expand(3, 128))
    with torch.no_grad():
        assert_near(module(wanted), linear(x, weight), ERROR["a16"])


@pytest.mark.parametrize("text", ["int8", "int8:g32*10%|int4:g32+outliers:1%"])
def test_a_tied_head_is_packed_and_its_rows_are_looked_up(text: str, rounded) -> None:
    weight = rounded(text, (200, 64))
    model = nn.ModuleDict({"embedding": QuantEmbedding.from_stored(weight)})
    model["head"] = TiedLinear(model["embedding"])  # type: ignore[arg-type]
    ids = torch.tensor([[0, 199, 3], [3, 16, 31]])
    expected = model["embedding"](ids)
    assert use_kernels(model) == {} and model["embedding"].packed is not None
    assert torch.equal(model["embedding"](ids), expected)
    assert_near(model["head"](expected), linear(expected, weight), ERROR["a16"])
    with pytest.raises(IndexError, match="vocabulary of 200"):
        model["embedding"](torch.tensor([200]))


def test_layers_with_one_input_share_its_quantization(rounded) -> None:
    weights = [rounded(text, (48, 128)) for text in ("int4:g64", "int2:g64", "int8:g64*25%|int3:g64", "int8:g32")]
    model = nn.ModuleList(QuantLinear.from_stored(weight) for weight in weights)
    use_kernels(model)
    shared, x = model[0].packed.shared, gaussian(5, 128)
    results = [module(x) for module in model]
    quantized = shared.get(x).quantized
    assert quantized.ways == 2  # groups of 64 and of 32
    assert all(torch.equal(module(x), result) for module, result in zip(model, results, strict=True))
    assert shared.get(x).quantized is quantized and quantized.ways == 2
    x *= 2
    assert all(torch.equal(module(x), 2 * result) for module, result in zip(model, results, strict=True))
    assert shared.get(x).quantized is not quantized
    with torch.inference_mode():  # where changes are not counted
        made = x.clone()
        first = model[0](made)
        made *= 2
        assert torch.equal(model[0](made), 2 * first)


def test_memory_given_to_a_tensor_is_seen(rounded) -> None:
    """`tensor.data = other` changes nothing that torch counts."""
    module, x, other = packed(rounded("int4:g64", (48, 128))), gaussian(5, 128), gaussian(5, 128, seed=2)
    before = module(x)
    x.data = other
    assert torch.equal(module(x), module(other)) and not torch.equal(module(x), before)


def test_threads_share_a_model(rounded) -> None:
    """While a product runs, another thread may ask for one with its own tensor, or with the same."""
    model = nn.ModuleList(QuantLinear.from_stored(rounded("int4:g64", (512, 512))) for _ in range(3))
    use_kernels(model)
    common = gaussian(512, 3).T  # whose rows are copied for the kernels
    expected = [module(common) for module in model]

    def run(own: Tensor) -> bool:
        same, alone = True, [module(own.clone()) for module in model]
        for _ in range(50):
            for module, first, second in zip(model, expected, alone, strict=True):
                same = same and torch.equal(module(common), first) and torch.equal(module(own), second)
        return same

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(run, [gaussian(3, 512, seed=seed) for seed in range(8)]))


def test_quantized_inputs_die_with_the_tensor() -> None:
    shared, x = SharedInputs(), gaussian(2, 64)
    assert shared.get(x) is shared.get(x)
    assert shared._last is not None
    del x
    assert shared._last is None


def test_rows_of_any_tensor() -> None:
    for x in (gaussian(4, 6).T, gaussian(3, 5, 8)[:, :, 2:6], gaussian(1, 8).expand(3, 8), gaussian(7)):
        rows = rows_of(x)
        assert rows.stride(1) == 1 and (len(rows) < 2 or rows.stride(0) >= rows.shape[1])
        assert torch.equal(rows, x.reshape(-1, x.shape[-1]))
