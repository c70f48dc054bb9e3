"""Tensors that a run keeps for itself between its steps: small safetensors files, written whole or not at all."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
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


def read_tensors(path: Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """The tensors of a file, or those of `names` that it has. Raises InputError for one that is missing or damaged."""
    try:
        with safe_open(path, "pt") as file:
            present = list(file.keys())
            wanted = present if names is None else [name for name in names if name in present]
            return {name: file.get_tensor(name) for name in wanted}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}). Remove that file; it will be measured again.") from error
