"""Damages to a finished folder, each of one kind."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bitbudget.checkpoint.header import TensorInfo
from bitbudget.checkpoint.read import Checkpoint
from bitbudget.checkpoint.write import ShardWriter, plan_shards
from bitbudget.pipeline.record import RECORD_NAME
from bitbudget.storage import TensorSpec

INDEX = "model.safetensors.index.json"


def edit(folder: Path, name: str, change: Callable[[np.ndarray], None], itemtype: str = "u1") -> None:
    """Change a tensor's stored bytes in place, seen as numbers of `itemtype`."""
    info = Checkpoint.open(folder).tensors[name]
    with info.file.open("r+b") as file:
        file.seek(info.start)
        values = np.frombuffer(bytearray(file.read(info.nbytes)), dtype=itemtype)
        before = values.copy()
        change(values)
        assert not np.array_equal(before, values, equal_nan=itemtype.startswith("f")), (
            "a mutant differs from the original"
        )
        file.seek(info.start)
        file.write(values.tobytes())


def forge(folder: Path, *names: str) -> None:
    """Write the present hashes into the record, as somebody would who damages a file and hides it."""
    checkpoint = Checkpoint.open(folder)
    record = json.loads((folder / RECORD_NAME).read_text())
    record["tensors"] |= {name: checkpoint.sha256(name) for name in names}
    (folder / RECORD_NAME).write_text(json.dumps(record))


def swap(folder: Path, one: str, other: str) -> None:
    """Exchange the bytes of two tensors of the same size."""
    tensors = Checkpoint.open(folder).tensors
    first, second = _bytes(tensors[one]), _bytes(tensors[other])
    assert len(first) == len(second) and first != second
    _put(tensors[one], second)
    _put(tensors[other], first)


def drop(folder: Path, name: str) -> None:
    """Write the shard of a tensor anew without it, and take it out of the index, as a careless merge would."""
    checkpoint = Checkpoint.open(folder)
    file = checkpoint.tensors[name].file
    kept = [info for info in checkpoint.tensors.values() if info.file == file and info.name != name]
    values = {info.name: checkpoint.read(info.name) for info in kept}
    (shard,) = plan_shards([tuple(TensorSpec(info.name, info.dtype, info.shape) for info in kept)], 10**12)
    os.remove(file)
    with ShardWriter(folder, shard) as writer:
        for key, tensor in values.items():
            writer.write(key, tensor)
    (folder / shard.filename).rename(file)
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"][name]
    (folder / INDEX).write_text(json.dumps(index))


def misindex(folder: Path, name: str) -> None:
    """Let the index name another shard for a tensor."""
    index = json.loads((folder / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    index["weight_map"][name] = next(file for file in files if file != index["weight_map"][name])
    (folder / INDEX).write_text(json.dumps(index))


def _bytes(info: TensorInfo) -> bytes:
    with info.file.open("rb") as file:
        file.seek(info.start)
        return file.read(info.nbytes)


def _put(info: TensorInfo, content: bytes) -> None:
    with info.file.open("r+b") as file:
        file.seek(info.start)
        file.write(content)
