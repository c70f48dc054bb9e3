"""Safetensors files made byte by byte, so that a test can make them wrong in one place."""

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor


def header_bytes(header: object) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.fixture(scope="session")
def make_file() -> Callable[..., Path]:
    """make_file(path, header, data) writes a file from a header (raw JSON bytes or what becomes JSON) and its data."""

    def make(path: Path, header: object, data: bytes = b"") -> Path:
        path.write_bytes(header_bytes(header) + data)
        return path

    return make


@pytest.fixture
def good_header() -> dict[str, Any]:
    """Two tensors, `a` of 6 float16 and `b` of 3 int32: 24 bytes of data."""
    return {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]},
        "b": {"dtype": "I32", "shape": [3], "data_offsets": [12, 24]},
    }


@pytest.fixture(scope="session")
def make_index() -> Callable[[Path, Mapping[str, str]], Path]:
    """make_index(folder, weight_map) writes the index of a folder."""

    def make(folder: Path, weight_map: Mapping[str, str]) -> Path:
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps({"metadata": {}, "weight_map": dict(weight_map)}))
        return path

    return make


@pytest.fixture(scope="session")
def same_bytes() -> Callable[[Tensor, Tensor], bool]:
    """Equal dtype, shape and bytes: also for NaN, and for dtypes that torch cannot compare."""

    def same(left: Tensor, right: Tensor) -> bool:
        if left.dtype != right.dtype or left.shape != right.shape:
            return False
        flat = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (left, right)]
        return torch.equal(flat[0], flat[1])

    return same


class Peak:
    """Growth of this process's own memory (RssAnon) inside a block, in bytes, looked at every millisecond."""

    def __init__(self) -> None:
        self.growth = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Peak":
        self._before = resident()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.001):
            self.growth = max(self.growth, resident() - self._before)


def resident() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


@pytest.fixture(scope="session")
def anonymous_peak() -> Callable[[], Peak]:
    return Peak
