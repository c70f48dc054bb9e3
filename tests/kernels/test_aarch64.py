"""NEON on any machine: the kernels' own tests, compiled for AArch64 by Zig's C++ compiler, run under the emulator unicorn.

Both are packages of PyPI (`pip install ziglang unicorn`); compiling and emulating take a quarter of an hour.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.peer("ziglang"), pytest.mark.peer("unicorn")]

TESTS = Path(__file__).parent / "cpu"
KERNELS = TESTS.parents[2] / "src/bitbudget/kernels/cpu"
# Zig names instruction sets otherwise than the compilers for which CMakeLists.txt has flags.
FEATURES = {"isa_neon_dotprod": "+dotprod", "isa_neon_i8mm": "+dotprod+i8mm"}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`test_kernels`, static, for AArch64 Linux."""
    folder = tmp_path_factory.mktemp("aarch64")
    environment = os.environ | {"ZIG_LOCAL_CACHE_DIR": str(folder / "zig"), "ZIG_GLOBAL_CACHE_DIR": str(folder / "zig")}
    compiler = [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl", "-std=c++17", "-O2"]
    compiler += ["-ffp-contract=off", "-DBITBUDGET_ARM", f"-I{KERNELS}"]

    def run(*words: str) -> None:
        subprocess.run([*compiler, *words], env=environment, check=True)

    objects = []
    kernels = (source for source in sorted(KERNELS.glob("*.cpp")) if not source.stem.startswith("isa_avx"))
    for source in (*kernels, TESTS / "test_kernels.cpp"):
        objects.append(str(folder / f"{source.stem}.o"))
        run(f"-mcpu=generic+v8_2a{FEATURES.get(source.stem, '')}", "-c", str(source), "-o", objects[-1])
    run("-static", *objects, "-o", str(folder / "test_kernels"))
    return folder / "test_kernels"


@pytest.mark.parametrize("number", [0, 4, 5], ids=["portable", "neon_dotprod", "neon_i8mm"])
def test_kernels_compute_the_same_under_emulation(program: Path, number: int) -> None:
    command = [sys.executable, str(TESTS / "aarch64.py"), str(program), str(number), "quick"]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert ended.returncode == 0, ended.stdout
    assert f"instruction set {number}: 0 checks" not in ended.stdout
    assert ", 0 failed" in ended.stdout
    assert "not here" not in ended.stdout
