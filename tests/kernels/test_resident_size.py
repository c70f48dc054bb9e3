"""The packed size stays the resident size: measured in a process of its own, peak sampled every millisecond."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TILE = 32 * 2**20
PROGRAM = Path(__file__).with_name("resident_size.py")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    "choice, dtype",
    [("int4:g128", "float32"), ("int4:g128:out", "float32"), ("int8:g128*10%|int4:g128+outliers:0.5%", "bfloat16")],
)
def test_a_large_layer_takes_its_packed_bytes_and_a_few_tiles(choice: str, dtype: str) -> None:
    arguments = [sys.executable, str(PROGRAM), choice, "4096", "4096", dtype]
    finished = subprocess.run(arguments, capture_output=True, text=True, check=True)
    measured = json.loads(finished.stdout)
    assert measured["held"] <= measured["packed"] + 2**20
    assert measured["packed"] < measured["peak"] <= measured["packed"] + 2.5 * TILE
    assert measured["after"] <= measured["packed"] + 1.5 * TILE
