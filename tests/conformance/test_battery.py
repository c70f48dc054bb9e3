"""The conformance battery: what every rounding keeps to with every choice (the lists are in battery.py)."""

import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitbudget.checkpoint.native import NativeConfig, NativeWeights
from bitbudget.checkpoint.read import Checkpoint
from bitbudget.checkpoint.write import ShardWriter, plan_shards
from bitbudget.grids import Float, PackedInt
from bitbudget.rounding import nearest
from bitbudget.storage import NATIVE, Choice, DensePart, StoredWeight
from conformance.battery import CHOICES, ROUNDINGS, SHAPES, Objective, Rounding, fitting, gaussian

CASES = [pytest.param(*ROUNDINGS[name], text, id=f"{name}-{text}") for name in ROUNDINGS for text in CHOICES]
every_case = pytest.mark.parametrize("rounding, objective, text", CASES)
SHAPE = (24, 120)


def digest(weight: StoredWeight) -> str:
    """Of all that is stored."""
    everything = sha256(str(weight.choice).encode())
    for name, tensor in weight.tensors().items():
        everything.update(name.encode() + tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return everything.hexdigest()


def awkward(shape: tuple[int, int]) -> dict[str, Tensor]:
    """Weights on which roundings stumble."""
    plain = gaussian(shape)
    zero_rows = plain.clone()
    zero_rows[::3] = 0
    constant_rows = plain.clone()
    constant_rows[1::2] = constant_rows[1::2, :1]
    heavy = plain.clone()
    heavy[0, 0], heavy[-1, -1] = 300.0, -200.0
    return {
        "zeros": torch.zeros(shape),
        "zero rows": zero_rows,
        "constant": torch.full(shape, -0.37),
        "constant rows": constant_rows,
        "positive": plain.abs() + 1,
        "negative": -plain.abs(),
        "one of two values": plain.sign(),
        "heavy": heavy,
        "tiny": plain * 1e-9,
        "huge": plain * 1e9,
    }


@every_case
def test_grid_points_stay(rounding: Rounding, objective: Objective, text: str) -> None:
    """Decoded weights are points of their grids, and rounding them once more changes less than rounding did."""
    weight = rounding(gaussian(SHAPE), Choice.parse(text))
    for part in weight.parts:
        if isinstance(part, DensePart):
            own, grid = torch.arange(part.shape[0]), part.format.grid
            values, parameters = part.decode(own), part.parameters(own)
            assert torch.equal(grid.decode(grid.encode(values, parameters), parameters), values)
    once = weight.dequantize()
    again = rounding(once, weight.choice).dequantize()
    assert objective(once, again) <= objective(gaussian(SHAPE), once)


@every_case
def test_grid_points_are_found_again(rounding: Rounding, objective: Objective, text: str) -> None:
    """Weights made of points of a grid whose both ends occur in every group are kept bit for bit."""
    del objective
    dense, *others = Choice.parse(text).dense
    if others or dense.grid.zero == "none" or Choice.parse(text).outliers:
        return  # rows are chosen, a symmetric range has no point at its ends, or outliers leave the range
    generator = torch.Generator().manual_seed(5)
    highest = dense.grid.levels - 1
    codes = torch.randint(0, highest + 1, SHAPE, generator=generator).float()
    axis, group = dense.grid.grouped_dimension, dense.grid.group_length(SHAPE)
    codes.index_fill_(axis, torch.arange(0, SHAPE[axis], group), 0)
    codes.index_fill_(axis, torch.arange(1, SHAPE[axis], group), highest)
    weights = 2.0**-5 * (codes - (highest / 2 if dense.grid.zero == "half" else highest // 2))
    # Scales in two levels are not powers of two.
    tolerance = 0 if isinstance(dense.grid.scale, Float) else 2e-3
    torch.testing.assert_close(rounding(weights, Choice.parse(text)).dequantize(), weights, rtol=tolerance, atol=0)


@every_case
def test_no_worse_than_nearest_on_its_own_objective(rounding: Rounding, objective: Objective, text: str) -> None:
    for name, weights in awkward(SHAPE).items():
        choice = Choice.parse(text)
        ours, theirs = (objective(weights, solve(weights, choice).dequantize()) for solve in (rounding, nearest))
        assert ours <= theirs * (1 + 1e-6), name


@every_case
def test_awkward_weights(rounding: Rounding, objective: Objective, text: str) -> None:
    for name, weights in awkward(SHAPE).items():
        weight = rounding(weights, Choice.parse(text))
        decoded = weight.dequantize()
        assert bool(decoded.isfinite().all()), name
        # Rounding everything to zero costs the sum of squares: no choice may do worse.
        assert objective(weights, decoded) <= 1e-9 + objective(weights, torch.zeros_like(weights)), name
        for part in weight.parts:
            if isinstance(part, DensePart):
                assert bool((part.parameters(torch.arange(part.shape[0])).scale > 0).all()), name


@every_case
def test_zero_rows_stay_zero(rounding: Rounding, objective: Objective, text: str) -> None:
    del objective
    weights = awkward(SHAPE)["zero rows"]
    decoded = rounding(weights, Choice.parse(text)).dequantize()[::3]
    grids = [part.grid for part in Choice.parse(text).dense]
    if all(grid.zero in ("none", "int") and isinstance(grid.zeros, PackedInt | None) for grid in grids):
        assert bool((decoded == 0).all())
    else:  # a grid without an exact zero
        assert float(decoded.abs().max()) <= 0.5 * float(weights.abs().max())


@every_case
def test_constant_weights_are_nearly_exact(rounding: Rounding, objective: Objective, text: str) -> None:
    del objective
    decoded = rounding(torch.full(SHAPE, -0.37), Choice.parse(text)).dequantize()
    bits = 2 if "int2" in text else 3
    # The outer codes of a symmetric grid lie half a step inside the range.
    allowed = 1 / (2**bits - 1) if any(part.grid.zero == "none" for part in Choice.parse(text).dense) else 0.03
    assert float((decoded / -0.37 - 1).abs().max()) <= allowed


@every_case
def test_odd_sizes(rounding: Rounding, objective: Objective, text: str) -> None:
    del objective
    for shape in SHAPES:
        if fitting(text, shape):
            weight = rounding(gaussian(shape), Choice.parse(text))
            assert weight.dequantize().shape == shape
            assert weight.nbytes == Choice.parse(text).nbytes(shape)


@pytest.mark.parametrize("name", ROUNDINGS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (3, 5), (13, 31), (2, 33)])
def test_sizes_that_no_word_divides(name: str, shape: tuple[int, int]) -> None:
    rounding, _ = ROUNDINGS[name]
    for text in ("int2", "int3", "int5s", "int6:out", "int8", "int3:zero=real", "int3+outliers:50%"):
        weight = rounding(gaussian(shape), Choice.parse(text))
        bits = weight.choice.dense[0].grid.bits
        assert weight.tensors()["dense.codes"].shape == (shape[0], -(-shape[1] * bits // 32))
        step = 1.1 * float(gaussian(shape).abs().max()) / (2**bits - 1) * 2
        assert float((weight.dequantize() - gaussian(shape)).abs().max()) <= step


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_of_the_input(rounding: Rounding, objective: Objective, text: str, dtype: torch.dtype) -> None:
    """16-bit weights are those weights: widening them first changes nothing."""
    del objective
    weights = gaussian(SHAPE).to(dtype if dtype.itemsize == 2 else torch.float32)
    assert digest(rounding(weights.to(dtype), Choice.parse(text))) == digest(
        rounding(weights.float(), Choice.parse(text))
    )


@every_case
def test_the_input_is_untouched(rounding: Rounding, objective: Objective, text: str) -> None:
    del objective
    weights = gaussian(SHAPE)
    state = torch.random.get_rng_state()
    rounding(weights, Choice.parse(text))
    assert torch.equal(weights, gaussian(SHAPE))
    assert torch.equal(torch.random.get_rng_state(), state)


def digests() -> dict[str, str]:
    """Of every case on a weight large enough for several threads and tiles."""
    weights = gaussian((520, 4160))
    return {
        f"{name}-{text}": digest(rounding(weights, Choice.parse(text)))
        for name, (rounding, _) in ROUNDINGS.items()
        for text in CHOICES[::3]
    }


def test_the_same_bytes_again_and_with_another_number_of_threads() -> None:
    before = torch.get_num_threads()
    first = digests()
    torch.set_num_threads(3)
    try:
        assert digests() == first
    finally:
        torch.set_num_threads(before)


def test_the_same_bytes_in_another_process() -> None:
    program = (
        "import sys, json, torch; sys.path.insert(0, sys.argv[1]); torch.set_num_threads(1)\n"
        "from conformance.test_battery import small_digests; print(json.dumps(small_digests()))"
    )
    tests = str(Path(__file__).resolve().parents[1])
    finished = subprocess.run([sys.executable, "-c", program, tests], capture_output=True, text=True, check=True)
    assert json.loads(finished.stdout) == small_digests()


def small_digests() -> dict[str, str]:
    return {text: digest(nearest(gaussian(SHAPE), Choice.parse(text))) for text in CHOICES}


@every_case
def test_round_trip_through_text_packing_and_tensors(rounding: Rounding, objective: Objective, text: str) -> None:
    del objective
    weight = rounding(gaussian(SHAPE), Choice.parse(text))
    choice = Choice.parse(str(weight.choice))
    assert choice == weight.choice
    copies = {name: tensor.clone() for name, tensor in weight.tensors().items()}
    again = StoredWeight.from_tensors(choice, SHAPE, copies)
    assert torch.equal(again.dequantize(), weight.dequantize())
    assert digest(again) == digest(weight)


@pytest.mark.parametrize("name", ROUNDINGS)
@pytest.mark.parametrize("kind", ["plain", "tiny"])
def test_round_trip_through_a_file(name: str, kind: str, tmp_path: Path) -> None:
    """All choices in one checkpoint, planned before any weight is seen, read back by name; some layers transposed."""
    rounding, _ = ROUNDINGS[name]
    weights = {
        f"layers.{number}": rounding(gaussian(SHAPE, number) * (1e-9 if kind == "tiny" else 1), Choice.parse(text))
        for number, text in enumerate(CHOICES)
    }
    units = tuple(
        tuple(spec.under(f"layers.{number}") for spec in NATIVE.specs(Choice.parse(text), SHAPE))
        for number, text in enumerate(CHOICES)
    )
    (shard,) = plan_shards(units, 2**40)
    with ShardWriter(tmp_path, shard) as writer:
        for layer, weight in weights.items():
            for part, tensor in weight.tensors().items():
                writer.write(f"{layer}.{part}", tensor)
    assert (tmp_path / shard.filename).stat().st_size == shard.nbytes
    config = NativeConfig({layer: weight.choice for layer, weight in weights.items()})
    config = NativeConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    transposed = frozenset(list(weights)[::2])
    with Checkpoint.open(tmp_path) as checkpoint:
        stored = NativeWeights(checkpoint, config, dict.fromkeys(weights, SHAPE), transposed)
        for layer, weight in weights.items():
            decoded = weight.dequantize()
            assert digest(stored.stored(layer)) == digest(weight)
            expected = decoded.T if layer in transposed else decoded
            assert torch.equal(stored.tensor(f"{layer}.weight"), expected)
            rows = torch.tensor([3, 3, 0, 23])
            assert torch.equal(stored.rows(f"{layer}.weight", rows), decoded[rows])


def test_the_lists_are_legal_and_reach_every_kind() -> None:
    for text in CHOICES:
        assert str(Choice.parse(text)) == text
        assert fitting(text, SHAPE)
        assert sum(fitting(text, shape) for shape in SHAPES) >= 3
    everything = " ".join(CHOICES)
    for word in ("s:", ":out", "zero=half", "zero=real", "zeros=", "bilevel", "offset", "|", "+outliers", "bf16"):
        assert word in everything
