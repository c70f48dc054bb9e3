"""The operator of the CPU kernels: torch's own checks of operators, graphs, and every tensor that does not fit."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bitbudget.kernels import QuantLinear, supported_isas, use_kernels
from bitbudget.kernels.operators import packed_linear

pytestmark = pytest.mark.skipif(not supported_isas(), reason="the package was installed without its CPU kernels")

# The outliers of the last are packed with the dense part; those of fp32 stay a matrix.
CHOICES = ("int4:g64", "int3:g32+outliers:5:fp32", "int8:g64*10%|int4:g64+outliers:5:fp32", "int4:g64+outliers:12%")


def module_of(text: str, rounded, bias: bool = True) -> QuantLinear:
    module = QuantLinear.from_stored(rounded(text, (50, 128), bias))
    use_kernels(module)
    return module


def arguments(text: str, rounded) -> dict[str, Any]:
    """What the module gives the operator."""
    module = module_of(text, rounded)
    assert module.packed is not None
    packed, layouts, outliers, orders = module.packed.operands()
    return {
        "x": torch.randn(3, 2, 128, generator=torch.Generator().manual_seed(1)),
        "packed": packed,
        "layouts": layouts,
        "outliers": outliers,
        "orders": orders,
        "bias": None if module.bias is None else module.bias.detach(),
        "in_features": 128,
        "out_features": 50,
        "isa": module.packed.isa,
        "activations": 1,
    }


@pytest.mark.parametrize("text", CHOICES)
def test_the_operator_is_what_torch_expects_of_one(text: str, rounded) -> None:
    given = arguments(text, rounded)
    for x in (given["x"], given["x"].to(torch.bfloat16), given["x"][0, 0], given["x"].transpose(0, 1)):
        torch.library.opcheck(packed_linear, tuple((given | {"x": x}).values()))


@pytest.mark.parametrize("text", CHOICES)
def test_compiled_and_exported_modules_give_the_same_numbers(text: str) -> None:
    program = Path(__file__).with_name("traced.py")
    finished = subprocess.run([sys.executable, str(program), text], capture_output=True, text=True)
    assert finished.stdout.split() == ["same"] * 7, finished.stderr


WRONG: dict[str, list[Any]] = {
    "x": [torch.ones(3, 127), torch.ones(3, 128, dtype=torch.float64), torch.ones(3, 128).int(), torch.tensor(1.0)],
    "packed": [[], [torch.zeros(0, dtype=torch.uint8)], [torch.zeros(64)], [torch.zeros(64, dtype=torch.uint8)] * 2],
    "layouts": [[], [1, 2, 3], [50, 64, 4], [50, 64, 7, 1], [50, 0, 4, 1], [-50, 64, 4, 1], [2**62, 64, 4, 1], [50, 64, 4, 9]],
    "outliers": [[torch.zeros(1, dtype=torch.int32)], [torch.zeros(51, dtype=torch.int32)] * 3],
    "orders": [[], [torch.zeros(50)], [torch.full((50,), 50, dtype=torch.int32)], [torch.full((50,), -1, dtype=torch.int32)]],
    "bias": [torch.zeros(49), torch.zeros(50, dtype=torch.float64), torch.zeros(50, 1)],
    "in_features": [0, 64, 127],
    "out_features": [-1, 49, 2**62],
    "isa": [-1, 6, 99],
    "activations": [-1, 2],
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("text", CHOICES)
def test_what_does_not_fit_is_an_error(name: str, text: str, rounded) -> None:
    given = arguments(text, rounded)
    for value in WRONG[name]:
        with pytest.raises((ValueError, TypeError, RuntimeError)):
            packed_linear(**(given | {name: value}))


def test_outliers_that_are_no_matrix(rounded) -> None:
    given = arguments(CHOICES[1], rounded)
    pointers, columns, values = given["outliers"]
    for place, value in ((0, 1), (3, 10**6), (-1, 0)):
        damaged = pointers.clone()
        damaged[place] = value
        with pytest.raises(ValueError, match="no sparse matrix"):
            packed_linear(**(given | {"outliers": [damaged, columns, values]}))
    for value in (-1, 128):
        damaged = columns.clone()
        damaged[0] = value
        with pytest.raises(ValueError, match="no sparse matrix"):
            packed_linear(**(given | {"outliers": [pointers, damaged, values]}))


def test_packed_outliers_that_are_none(rounded) -> None:
    given = arguments(CHOICES[3], rounded)
    (packed,) = given["outliers"]
    assert packed.dtype == torch.uint8
    columns = 256  # where they begin, behind 51 row pointers
    for place, value in ((0, 1), (8, 200), (4 * 50, 1), (columns, 255), (columns + 2 * 768 - 1, 255)):
        damaged = packed.clone()
        damaged[place] = value
        with pytest.raises(ValueError, match="no packed outliers"):
            packed_linear(**(given | {"outliers": [damaged]}))
    for wrong in (packed[:-64], packed[:64], packed[64:], torch.cat([packed, packed])):
        with pytest.raises(ValueError, match="no packed outliers"):
            packed_linear(**(given | {"outliers": [wrong.clone()]}))


def test_any_arguments_give_numbers_or_an_error(rounded) -> None:
    """Tensors cut, stretched, moved off their alignment and exchanged, by chance."""
    draw = random.Random(0)
    for _ in range(400):
        given = arguments(draw.choice(CHOICES), rounded) if draw.random() < 0.05 or _ == 0 else dict(given)
        changed = dict(given)
        for name in draw.sample(sorted(changed), draw.randint(1, 3)):
            changed[name] = _changed(changed[name], draw)
        try:
            result = packed_linear(**changed)
        except (ValueError, TypeError, RuntimeError):
            continue
        assert result.dtype == torch.float32


def _changed(value: Any, draw: random.Random) -> Any:
    if isinstance(value, list):
        return [_changed(entry, draw) if draw.random() < 0.7 else entry for entry in value][
            : draw.randint(0, len(value) + 1)
        ]
    if isinstance(value, Tensor) and value.dim():
        other = value.to(draw.choice((torch.int64, torch.float32, torch.uint8)))
        return draw.choice((value[1:], value[..., :-1], torch.cat([value, value]), value[:0], other, value.flip(0)))
    if isinstance(value, int):
        return draw.choice((value + 1, value - 1, -value, 0, 2**31, 2**62, 2 * value))
    return value
