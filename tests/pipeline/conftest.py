"""A finished checkpoint of a small model with biases, made once; tests work on copies."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import zoo
from bitbudget.pipeline.api import quantize

CHOICE = "int8:g32*25%|int3:g32+outliers:1%"


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen2 architecture: biases, norm gains, untied head, several shards, a text tokenizer."""
    return zoo.make_model("qwen2", tmp_path_factory.mktemp("original"), dtype=torch.bfloat16, shards=3, text=True)


@pytest.fixture(scope="session")
def finished(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`original`, quantized into several shards and verified."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    quantize(original, CHOICE, folder, embedding="int4:g32", max_shard_bytes=300_000)
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished` to damage."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


@pytest.fixture
def model_copy(original: Path, tmp_path: Path) -> Callable[[], Path]:
    """A copy of `original` to damage."""
    return lambda: Path(shutil.copytree(original, tmp_path / "model"))
