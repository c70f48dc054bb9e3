"""Writes safetensors files whose every byte count is known beforehand; a file appears only when it is complete.

A shard is planned from descriptions of tensors alone: its header, and so its size, exists before any data does. Tensors
then arrive in any order and go straight to their place.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, TracebackType

import torch
from jaxtyping import Shaped
from torch import Tensor

from bitbudget.checkpoint.atomic import Replacement
from bitbudget.checkpoint.atomic import copy_atomic as copy_atomic
from bitbudget.checkpoint.atomic import write_atomic as write_atomic
from bitbudget.checkpoint.header import DTYPES
from bitbudget.checkpoint.read import SINGLE_NAME
from bitbudget.storage.tensors import TensorSpec

DTYPE_NAMES = MappingProxyType({dtype: name for name, dtype in DTYPES.items()})
CHUNK_BYTES = 4 << 20  # memory that a strided tensor, or one on a device, takes on its way to the disk


@dataclass(frozen=True)
class Shard:
    """One planned safetensors file. All sizes are in bytes and exact before anything is written.

    In the file the tensors with the widest items come first, in the given order otherwise (as the format's own library
    does): every tensor then starts at a multiple of its item size, which programs that map the file rely on.
    """

    filename: str
    specs: tuple[TensorSpec, ...]

    @cached_property
    def tensor_bytes(self) -> int:
        """Bytes of the tensors alone."""
        return sum(spec.nbytes for spec in self.specs)

    @cached_property
    def header_bytes(self) -> int:
        """Bytes before the first tensor: the 8-byte length, the JSON and its padding to a multiple of 8."""
        # float16 may become bfloat16 while writing, so room is kept for the longer spelling.
        longest = _header_json(self, {spec.name for spec in self.specs if spec.dtype == torch.float16})
        return -(-(8 + len(longest)) // 8) * 8

    @property
    def nbytes(self) -> int:
        """Bytes of the whole file."""
        return self.header_bytes + self.tensor_bytes

    @cached_property
    def offsets(self) -> dict[str, int]:
        """Offset of every tensor, counted from the end of the header, in the order of the file."""
        offsets, end = {}, 0
        for spec in sorted(self.specs, key=lambda spec: -spec.dtype.itemsize):
            offsets[spec.name] = end
            end += spec.nbytes
        return offsets

    def header(self, bfloat16: Set[str] = frozenset()) -> bytes:
        """The header, always `header_bytes` long; the float16 tensors named in `bfloat16` are declared as such."""
        text = _header_json(self, bfloat16).ljust(self.header_bytes - 8)
        return len(text).to_bytes(8, "little") + text


def plan_shards(units: Sequence[tuple[TensorSpec, ...]], max_shard_bytes: int) -> tuple[Shard, ...]:
    """Files of at most `max_shard_bytes` tensor bytes each (header not counted), filled in the given order.

    The tensors of a unit stay in one file unless the unit alone exceeds the limit; a tensor is never cut, so one that
    exceeds the limit gets a file of its own. A single file is called model.safetensors. Raises ValueError for a name
    given twice and for a dtype that safetensors does not know.
    """
    _check_specs([spec for unit in units for spec in unit])
    groups: list[list[TensorSpec]] = []
    filled = 0
    for piece, size in _pieces(units, max_shard_bytes):
        if not groups or filled + size > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].extend(piece)
        filled += size
    if len(groups) == 1:
        return (Shard(SINGLE_NAME, tuple(groups[0])),)
    names = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    return tuple(Shard(name, tuple(group)) for name, group in zip(names, groups, strict=True))


def index_json(shards: Sequence[Shard]) -> bytes:
    """Content of model.safetensors.index.json: which file holds which tensor. Written only beside several shards."""
    weight_map = {spec.name: shard.filename for shard in shards for spec in shard.specs}
    index = {"metadata": {"total_size": sum(shard.tensor_bytes for shard in shards)}, "weight_map": weight_map}
    return json.dumps(index, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"


class ShardWriter:
    """Writes one shard: `with ShardWriter(folder, shard) as writer: writer.write(name, tensor)`, in any order.

    The file appears under its name when the block ends without an exception; otherwise nothing stays behind.
    Raises OutputError if the folder or the disk cannot take the file, at the start where that can be known.
    """

    def __init__(self, folder: str | Path, shard: Shard) -> None:
        self.path = Path(folder) / shard.filename
        self.shard = shard
        self._specs = {spec.name: spec for spec in shard.specs}
        self._written: set[str] = set()
        self._bfloat16: set[str] = set()

    def __enter__(self) -> "ShardWriter":
        with ExitStack() as stack:
            self._file = stack.enter_context(Replacement(self.path, self.shard.nbytes))
            self._file.write_at(self.shard.header(), 0)
            stack.push(self._finish)
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.__exit__(kind, error, trace)

    def write(self, name: str, tensor: Shaped[Tensor, "..."]) -> str:
        """Writes a tensor at its place and returns the hex SHA-256 of its bytes.

        Shape and dtype must be as planned, except that bfloat16 may arrive for float16. A contiguous tensor in main
        memory is not copied, any other in pieces of about 4 MiB. Raises ValueError for a tensor that was not planned
        so, or is already written.
        """
        self._check(name, tensor)
        digest = hashlib.sha256()
        offset = self.shard.header_bytes + self.shard.offsets[name]
        for chunk in _chunks(tensor.detach()):
            self._file.write_at(chunk, offset)
            digest.update(chunk)
            offset += len(chunk)
        if tensor.dtype != self._specs[name].dtype:
            self._bfloat16.add(name)
        self._written.add(name)
        return digest.hexdigest()

    def _check(self, name: str, tensor: Tensor) -> None:
        spec = self._specs.get(name)
        if spec is None:
            raise ValueError(f"{self.path}: the tensor {name!r} was not planned for this file")
        if name in self._written:
            raise ValueError(f"{self.path}: the tensor {name!r} is already written")
        dtypes = {spec.dtype, torch.bfloat16} if spec.dtype == torch.float16 else {spec.dtype}
        if tuple(tensor.shape) != spec.shape or tensor.dtype not in dtypes:
            raise ValueError(
                f"{self.path}: the tensor {name!r} was planned as {spec.dtype} {spec.shape} but is "
                f"{tensor.dtype} {tuple(tensor.shape)}"
            )

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return
        missing = [name for name in self._specs if name not in self._written]
        if missing:
            raise ValueError(f"{self.path}: {len(missing)} promised tensors were never written, first {missing[0]!r}")
        if self._bfloat16:
            self._file.write_at(self.shard.header(self._bfloat16), 0)


def _check_specs(specs: Sequence[TensorSpec]) -> None:
    names: set[str] = set()
    for spec in specs:
        if spec.name in names or spec.name == "__metadata__":
            raise ValueError(f"the tensor name {spec.name!r} is given twice or reserved")
        if spec.dtype not in DTYPE_NAMES:
            raise ValueError(f"the tensor {spec.name!r} is {spec.dtype}, which safetensors files do not hold")
        names.add(spec.name)


def _pieces(
    units: Sequence[tuple[TensorSpec, ...]], max_shard_bytes: int
) -> Iterator[tuple[tuple[TensorSpec, ...], int]]:
    """What stays together, with its bytes: whole units, or the single tensors of a unit that no file can take."""
    for unit in filter(None, units):
        size = sum(spec.nbytes for spec in unit)
        if size <= max_shard_bytes:
            yield unit, size
        else:
            yield from (((spec,), spec.nbytes) for spec in unit)


def _header_json(shard: Shard, bfloat16: Set[str]) -> bytes:
    specs = {spec.name: spec for spec in shard.specs}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for name, start in shard.offsets.items():
        spec = specs[name]
        header[name] = {
            "dtype": DTYPE_NAMES[torch.bfloat16 if name in bfloat16 else spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [start, start + spec.nbytes],
        }
    return json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()


def _chunks(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor in order, a few rows at a time; views of its own memory if it is contiguous there."""
    rows = tensor.reshape(1) if tensor.ndim == 0 else tensor
    row_bytes = max(1, rows.nbytes // max(1, len(rows)))
    for part in rows.split(max(1, CHUNK_BYTES // row_bytes)):
        # As bytes, because numpy knows neither bfloat16 nor the 8-bit floats.
        yield part.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data
