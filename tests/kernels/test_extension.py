"""The compiled module by itself: one OpenMP library, no crash on any numbers, and a package that runs without it."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bitbudget.kernels import best_isa, supported_isas
from bitbudget.kernels.extension import ISAS, compiled
from bitbudget.kernels.products import CodeLayout, pack

compiled_only = pytest.mark.skipif(not supported_isas(), reason="the package was installed without its CPU kernels")


def run(code: str) -> list[str]:
    finished = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.split()


RUN_A_KERNEL = """
import torch
torch.set_num_threads(2)
from bitbudget.kernels import QuantLinear, use_kernels
from bitbudget.rounding import nearest
from bitbudget.storage import Choice
module = QuantLinear.from_stored(nearest(torch.randn(512, 512), Choice.parse("int4:g64")))
use_kernels(module)
module(torch.ones(4, 512)), torch.ones(512, 512) @ torch.ones(512, 512)
"""


@compiled_only
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_the_process_has_one_openmp_library() -> None:
    """That of torch: kernels and torch then share one team of threads."""
    list_them = (
        "print(*{line.split()[-1] for line in open('/proc/self/maps') if 'omp' in line.rpartition('/')[2]}, sep='\\n')"
    )
    libraries = run(f"{RUN_A_KERNEL}\n{list_them}")
    assert len(libraries) == 1 and "/torch" in libraries[0]


@compiled_only
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_kernels_start_no_threads_of_their_own() -> None:
    count = "len(__import__('os').listdir('/proc/self/task'))"
    before = (
        "import torch; torch.set_num_threads(2); torch.ones(999, 999) @ torch.ones(999, 999); torch.ones(10**6).sum()"
    )
    first, second = run(f"{before}; print({count})\n{RUN_A_KERNEL}\nprint({count})")
    assert first == second


@compiled_only
def test_the_portable_kernels_are_always_there() -> None:
    assert supported_isas()[0] == "portable" and best_isa() == supported_isas()[-1]
    assert [compiled().supported(isa) for isa in (-1, len(ISAS), 10**6)] == [False] * 3


def test_without_the_extension_everything_runs_and_says_so_once() -> None:
    code = """
import importlib, sys, warnings
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name == "bitbudget.kernels._cpu":
            raise ImportError("not built")
sys.meta_path.insert(0, Absent())
import torch
from bitbudget.kernels import QuantLinear, linear, supported_isas, use_kernels
from bitbudget.rounding import nearest
from bitbudget.storage import Choice
weight = nearest(torch.randn(32, 64), Choice.parse("int4:g32"))
module = QuantLinear.from_stored(weight)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    reasons = [use_kernels(module), use_kernels(module)]
assert len(told) == 1 and "reference kernels" in str(told[0].message) and "not built" in str(told[0].message)
assert reasons == [{"": "the package has no compiled kernels here"}] * 2 and supported_isas() == ()
assert torch.equal(module(torch.ones(2, 64)), linear(torch.ones(2, 64), weight))
print("ran")
"""
    assert run(code) == ["ran"]


FUNCTIONS = {
    "packed_size": 6, "pack": 14, "unpack": 14, "lookup": 13, "Weight": 3, "add_outliers": 15, "exact_parameters": 3,
    "valid": 6, "packed_outliers_size": 7, "pack_outliers": 9, "are_outliers": 4,
}  # fmt: skip
ADDRESSES = {
    "pack": (6, 8, 9, 11), "unpack": (6, 8, 10, 11), "lookup": (6, 8, 10), "packed_outliers_size": (1, 3, 5),
    "pack_outliers": (1, 3, 5, 7), "are_outliers": (2,), "add_outliers": (0, 5, 6, 7, 10, 12), "exact_parameters": (0, 1),
}  # fmt: skip


@compiled_only
@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_numbers_crash_the_extension(name: str) -> None:
    """Sizes that do not fit are refused before an address is used; addresses themselves are taken on trust, so they are null."""
    draw, function, refused = random.Random(0), getattr(compiled(), name), 0
    plain = {"rows": 32, "columns": 64}
    for _ in range(2000):
        numbers = [
            draw.choice((0, 1, 2, 3, 4, 8, 16, *plain.values(), -1, -64, 2**31, 2**40, 2**62))
            for _ in range(FUNCTIONS[name])
        ]
        numbers = [0 if place in ADDRESSES.get(name, ()) else number for place, number in enumerate(numbers)]
        try:
            function(*numbers)
        except (ValueError, TypeError):
            refused += 1
    assert refused or name in ("valid", "are_outliers")


@compiled_only
def test_sizes_of_packed_codes_need_no_extension() -> None:
    """The formula in Python is that of the extension, and so is what there are kernels for."""
    draw, fitting = random.Random(0), 0
    for _ in range(3000):
        rows, columns = draw.choice((0, 1, 15, 16, 17, 100)), draw.choice((0, 1, 31, 32, 33, 200, 4096, 70_000))
        group, bits = draw.choice((0, 1, 8, 32, 100, 128, 65_536, 10**6)), draw.randrange(10)
        layout = CodeLayout(0, rows, columns, group, bits, draw.randrange(3))
        assert layout.exists == compiled().valid(*layout.arguments), layout
        if layout.exists:
            fitting += 1
            assert layout.nbytes == compiled().packed_size(*layout.arguments), layout
    assert fitting > 500


@compiled_only
def test_no_numbers_crash_a_weight() -> None:
    """As above: an empty product is the only one that nothing is needed for."""
    layout = CodeLayout(0, 32, 64, 32, 4, 0)
    packed = pack(layout, torch.zeros(32, 8, dtype=torch.int32), torch.ones(32, 2), torch.ones(32, 2))
    weight, inputs = compiled().Weight(0, 64, 32), compiled().Inputs()
    draw, added, done = random.Random(0), 0, []

    def numbers(count: int, addresses: tuple[int, ...]) -> list[int]:
        drawn = [draw.choice((0, 1, 2, 4, 32, 64, -1, -64, 2**31, 2**40, 2**62)) for _ in range(count)]
        return [0 if place in addresses else number for place, number in enumerate(drawn)]

    for _ in range(2000):
        try:
            weight.add(*numbers(10, (4, 6, 8)))
            added += 1
        except (ValueError, TypeError):
            pass
    weight.add(layout.rows, layout.group, layout.bits, layout.parameters, packed.data_ptr(), packed.nbytes, 0, 0, 0, 0)
    for _ in range(2000):
        called = numbers(10, (0, 5, 7))
        try:
            weight.multiply(inputs, *called)
            done.append(called[2])
        except (ValueError, TypeError):
            pass
        with pytest.raises((ValueError, TypeError)):
            inputs.dequantize(*numbers(7, (5,)))
    assert added == 0 and set(done) <= {0} and inputs.ways == 0
    with pytest.raises(TypeError):
        weight.multiply(None, *[0] * 10)
