"""Tensors that a run keeps for itself between its steps: small safetensors files, written whole or not at all."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bitbudget.checkpoint.atomic import make_folder
from bitbudget.checkpoint.write import Shard, ShardWriter
from bitbudget.errors import InputError
from bitbudget.storage.tensors import TensorSpec


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors into one file that appears when it is complete. Raises OutputError."""
    make_folder(path.parent)
    specs = tuple(TensorSpec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items())
    with ShardWriter(path.parent, Shard(path.name, specs)) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file. Raises InputError for one that is missing or damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}). Remove that file; it will be measured again.") from error
