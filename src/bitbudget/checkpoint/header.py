"""The header of a safetensors file: read alone, and strictly, before any tensor is trusted.

A safetensors file is an 8-byte little-endian length n, n bytes of JSON (name -> dtype, shape, data_offsets counted from
byte 8 + n) and the data without gaps (https://huggingface.co/docs/safetensors).
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch

from bitbudget.errors import InputError

DTYPES = MappingProxyType({
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
})  # fmt: skip
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library: a longer header is an attack or not a header


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies. `start` is the absolute offset in `file`, `nbytes` its length, both in bytes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    start: int
    nbytes: int


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file in the order of their data, strictly validated.

    Raises InputError for a lying or oversized header length, invalid JSON, an unknown dtype, offsets that do not fit
    shape and dtype, overlaps, holes, and a file longer or shorter than its header says.
    """
    try:
        with open(file, "rb", buffering=0) as stream:
            size = os.fstat(stream.fileno()).st_size
            length = _header_length(file, stream.read(8), size)
            raw = stream.read(length)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}).") from error
    entries = _parse_header(file, raw)
    data = 8 + length
    infos = sorted((_tensor_info(file, name, entry, data) for name, entry in entries.items()), key=_place)
    _check_layout(file, infos, data, size)
    return {info.name: info for info in infos}


def _header_length(file: Path, first: bytes, size: int) -> int:
    if first == b"version ":
        raise InputError(f"{file} is a Git LFS pointer, not the weights. Fetch the file itself (`git lfs pull`).")
    if len(first) < 8:
        raise InputError(f"{file} has {size} bytes, too few for a safetensors file (at least 10). Download it again.")
    length = int.from_bytes(first, "little")
    if length > size - 8:
        raise InputError(
            f"{file}: the header claims {length} bytes but only {size - 8} follow in the file. It is cut inside its "
            "header, damaged, or no safetensors file; download or save it again."
        )
    if length > MAX_HEADER_BYTES:
        raise InputError(f"{file}: the header claims {length} bytes; more than {MAX_HEADER_BYTES} are never accepted.")
    return length


def _parse_header(file: Path, raw: bytes) -> dict[str, object]:
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique_names)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{file}: its header of {len(raw)} bytes is not valid JSON ({error}); it is damaged."
        ) from error
    if not isinstance(header, dict):
        raise InputError(f"{file}: the header is no JSON object but a {type(header).__name__}. The file is damaged.")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError(f"{file}: `__metadata__` in the header must map texts to texts. The file is damaged.")
    return header


def _unique_names(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name!r} occurs twice")
        name.encode("utf-8")  # a lone surrogate passes JSON but could never be written to a file again
        found[name] = value
    return found


def _tensor_info(file: Path, name: str, entry: object, data: int) -> TensorInfo:
    where = f"{file}: the tensor {name!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise InputError(f"{where} needs dtype, shape and data_offsets, found {_short(entry)}. The file is damaged.")
    dtype, shape, offsets = (entry[key] for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise InputError(f"{where} has the unknown dtype {_short(dtype)}; known are {', '.join(DTYPES)}.")
    # Bounded as if empty dimensions were 1, so that torch can describe every shape that passes.
    if not _counts(shape) or math.prod(max(1, size) for size in shape) >= 1 << 60:
        raise InputError(f"{where} has the impossible shape {_short(shape)}. The file is damaged.")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise InputError(f"{where} has the impossible data_offsets {_short(offsets)}. The file is damaged.")
    start, end = offsets
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    if nbytes != end - start:
        raise InputError(
            f"{where} of dtype {dtype} and shape {shape} takes {nbytes} bytes, but its offsets {start} to {end} "
            f"hold {end - start}. The file is damaged."
        )
    return TensorInfo(name, DTYPES[dtype], tuple(shape), file, data + start, nbytes)


def _check_layout(file: Path, infos: list[TensorInfo], data: int, size: int) -> None:
    end = data
    previous = "the header"
    for info in infos:
        if info.start != end:
            kind = "overlaps" if info.start < end else "leaves a hole after"
            raise InputError(
                f"{file}: the tensor {info.name!r} starts at byte {info.start} and {kind} {previous}, "
                f"which ends at byte {end}. The file is damaged."
            )
        end, previous = info.start + info.nbytes, f"the tensor {info.name!r}"
    if size < end:
        first = next(info.name for info in infos if info.start + info.nbytes > size)
        raise InputError(
            f"{file} is truncated: expected {end} bytes, found {size} ({end - size} are missing, first in the tensor "
            f"{first!r}). Download or save it again."
        )
    if size > end:
        raise InputError(
            f"{file} is too long: expected {end} bytes, found {size}. The last {size - end} bytes belong to no tensor; "
            "the file is damaged."
        )


def _counts(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _place(info: TensorInfo) -> tuple[int, int]:
    return info.start, info.nbytes


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
