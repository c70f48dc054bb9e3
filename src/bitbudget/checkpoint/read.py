"""Reads safetensors checkpoints: every header at once, tensor bytes later by positional reads.

Nothing is memory-mapped: mapped pages count as resident memory, so a promise about peak memory could neither be kept
nor measured.
"""

import difflib
import hashlib
import json
import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from bitbudget.checkpoint.header import TensorInfo as TensorInfo
from bitbudget.checkpoint.header import read_header
from bitbudget.errors import InputError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
PICKLE_PATTERNS = ("pytorch_model*.bin", "consolidated*.pth", "model*.pt")
READ_CALL_BYTES = 1 << 30  # one read call moves at most 2 GiB on Linux and refuses more on macOS
HASH_CHUNK_BYTES = 8 << 20
CONVERT_BYTES = 16 << 20  # of a tensor in the file's dtype on its way to another


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """All tensors of a folder by name. Opening reads headers only; reading never touches more than the bytes asked for.

    Files are opened at the first read and closed by `close()` (a later read opens them again) or with the object.
    """

    folder: Path
    tensors: dict[str, TensorInfo]
    files: tuple[Path, ...]
    _descriptors: dict[Path, int] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        weakref.finalize(self, _close_all, self._descriptors)

    @classmethod
    def open(cls, folder: str | Path) -> "Checkpoint":
        """The checkpoint in `folder`, with every header validated.

        Raises InputError, naming the file and the numbers, for a folder without safetensors, an absent, damaged or
        truncated file, and an index that disagrees with its shards. A tensor that the index leaves out is kept.
        """
        folder = Path(folder)
        files, index = _weight_files(folder)
        tensors: dict[str, TensorInfo] = {}
        for file in files:
            for name, info in read_header(file).items():
                if name in tensors:
                    raise InputError(
                        f"The tensor {name!r} is stored twice, in {tensors[name].file} and in {file}, so it is unclear "
                        "which one counts. Save the model again, or remove it from one of the files."
                    )
                tensors[name] = info
        _check_index(folder, index, tensors)
        return cls(folder, tensors, files)

    def info(self, name: str) -> TensorInfo:
        """Place and type of a tensor; InputError with the nearest names if there is none of that name."""
        if name in self.tensors:
            return self.tensors[name]
        near = difflib.get_close_matches(name, self.tensors, n=3)
        hint = f" The nearest names are {', '.join(map(repr, near))}." if near else ""
        raise InputError(f"{self.folder} holds no tensor called {name!r} among its {len(self.tensors)}.{hint}")

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Shaped[Tensor, "..."]:
        """Rows start:stop of dimension 0 (all by default; a scalar only whole) in a fresh tensor of the file's dtype.

        Raises InputError if the file cannot be read, IndexError if the rows do not exist.
        """
        info = self.info(name)
        if not info.shape:
            if start != 0 or stop is not None:
                raise IndexError(f"{name} is a scalar and has no rows {start}:{stop}")
            return self._fill(info, torch.empty((), dtype=info.dtype), info.start)
        rows = info.shape[0]
        stop = rows if stop is None else stop
        if not 0 <= start <= stop <= rows:
            raise IndexError(f"rows {start}:{stop} of {name}, which has {rows} rows")
        tensor = torch.empty((stop - start, *info.shape[1:]), dtype=info.dtype)
        return self._fill(info, tensor, info.start + start * _row_bytes(info))

    def read_as(self, name: str, dtype: torch.dtype) -> Shaped[Tensor, "..."]:
        """The whole tensor in another dtype, converted in tiles of rows: the file's own dtype is never there as a whole."""
        info = self.info(name)
        if info.dtype == dtype or not info.shape or not info.nbytes:
            return self.read(name).to(dtype)
        tensor = torch.empty(info.shape, dtype=dtype)
        step = max(1, CONVERT_BYTES // _row_bytes(info))
        for start in range(0, info.shape[0], step):
            stop = min(start + step, info.shape[0])
            tensor[start:stop] = self.read(name, start, stop)
        return tensor

    def read_rows(self, name: str, ids: Int[Tensor, " n"]) -> Shaped[Tensor, "n ..."]:
        """The rows `ids` of dimension 0, in that order; each is read once, neighbours in one call, and no other row.

        Raises InputError if the file cannot be read, IndexError if a row does not exist.
        """
        info = self.info(name)
        rows = info.shape[0] if info.shape else 0
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < rows:
            raise IndexError(f"rows {int(ids.min())} to {int(ids.max())} of {name}, which has {rows} rows")
        wanted, places = torch.unique(ids.cpu().long(), return_inverse=True)
        tensor = torch.empty((len(wanted), *info.shape[1:]), dtype=info.dtype)
        row_bytes = _row_bytes(info)
        for place, count in _runs(wanted):
            self._fill(info, tensor[place : place + count], info.start + int(wanted[place]) * row_bytes)
        if torch.equal(places, torch.arange(len(wanted))):
            return tensor
        # Rows are picked as bytes because torch cannot index every dtype of the format.
        picked = _bytes_of(tensor).view(len(wanted), row_bytes)[places]
        return picked.view(-1).view(info.dtype).view(len(ids), *info.shape[1:])

    def sha256(self, name: str) -> str:
        """Hex SHA-256 of a tensor's bytes in the file, read in chunks of 8 MiB."""
        info = self.info(name)
        digest = hashlib.sha256()
        chunk = memoryview(bytearray(min(HASH_CHUNK_BYTES, info.nbytes)))
        for done in range(0, info.nbytes, HASH_CHUNK_BYTES):
            part = chunk[: min(HASH_CHUNK_BYTES, info.nbytes - done)]
            self._read_into(info, part, info.start + done)
            digest.update(part)
        return digest.hexdigest()

    def close(self) -> None:
        """Closes the files that reads have opened."""
        _close_all(self._descriptors)

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fill(self, info: TensorInfo, tensor: Tensor, offset: int) -> Tensor:
        self._read_into(info, _bytes_of(tensor).numpy().data, offset)
        return tensor

    def _read_into(self, info: TensorInfo, buffer: memoryview, offset: int) -> None:
        done = 0
        try:
            while done < len(buffer):
                part = buffer[done : done + READ_CALL_BYTES]
                count = os.preadv(self._descriptor(info.file), [part], offset + done)
                if count == 0:
                    raise InputError(
                        f"{info.file} has become shorter since it was opened: the tensor {info.name!r} should reach "
                        f"byte {info.start + info.nbytes}, the file ends at byte {offset + done}."
                    )
                done += count
        except OSError as error:
            raise InputError(f"{info.file}: the tensor {info.name!r} cannot be read ({error.strerror}).") from error

    def _descriptor(self, file: Path) -> int:
        if file not in self._descriptors:
            self._descriptors[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        return self._descriptors[file]


def _weight_files(folder: Path) -> tuple[tuple[Path, ...], dict[str, str]]:
    """The weight files of a folder and the index's tensor -> shard name (empty without an index)."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder. A model is a folder with config.json and safetensors files.")
    single = folder / SINGLE_NAME
    if (folder / INDEX_NAME).is_file():
        index = _read_index(folder / INDEX_NAME)
        files = tuple(sorted({_shard_path(folder, shard) for shard in index.values()}))
        if single.is_file() and single not in files:
            raise InputError(
                f"{folder} holds two checkpoints: {SINGLE_NAME}, and {INDEX_NAME} with {len(files)} other files. "
                "Which one is meant is unclear; move one of them away."
            )
        return files, index
    found = tuple(sorted(path for path in folder.glob("*.safetensors") if path.is_file()))
    if single in found or len(found) == 1:
        return (single if single in found else found[0],), {}
    if found:
        names = ", ".join(path.name for path in found[:5])
        raise InputError(
            f"{folder} holds {len(found)} safetensors files ({names} ...) but no {INDEX_NAME} that says "
            "which of them belong together."
        )
    raise InputError(_no_weights(folder))


def _no_weights(folder: Path) -> str:
    pickles = sorted(path.name for pattern in PICKLE_PATTERNS for path in folder.glob(pattern))
    if not pickles:
        return f"{folder} holds no weights: neither {SINGLE_NAME} nor {INDEX_NAME} nor another safetensors file."
    return (
        f"{folder} holds its weights as pickle only ({pickles[0]}), which is never loaded because a pickle can run any "
        "program. If you trust its origin, convert it once: "
        'python -c "from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained('{folder}', dtype='auto').save_pretrained('{folder}-safetensors')\"; "
        "then copy the tokenizer files."
    )


def _read_index(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}). Download it again.") from error
    index = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(index, dict) or not index or not all(isinstance(shard, str) for shard in index.values()):
        raise InputError(f"{path} must hold a `weight_map` from tensor names to file names. Download it again.")
    return index


def _shard_path(folder: Path, shard: str) -> Path:
    # The name is judged, not where it leads: the shards of a hub cache are honest links to a folder of blobs.
    posix, windows = PurePosixPath(shard), PureWindowsPath(shard)
    if posix.is_absolute() or windows.anchor or ".." in posix.parts + windows.parts or "\0" in shard:
        raise InputError(
            f"{folder / INDEX_NAME} names the shard {shard!r} outside the folder; such an index is not followed."
        )
    if not (folder / shard).is_file():
        raise InputError(
            f"{folder / INDEX_NAME} names the shard {shard!r}, which is absent. Download the missing file."
        )
    return folder / shard


def _check_index(folder: Path, index: dict[str, str], tensors: dict[str, TensorInfo]) -> None:
    for name, shard in index.items():
        file = tensors[name].file if name in tensors else None
        if file != folder / shard:
            place = f"is in {file.name}" if file else "is in no shard"
            raise InputError(
                f"{folder / INDEX_NAME} places the tensor {name!r} in {shard}, which does not hold it; the tensor "
                f"{place}. Index and shards do not belong together; download them again."
            )


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _row_bytes(info: TensorInfo) -> int:
    return info.nbytes // info.shape[0] if info.shape and info.shape[0] else 0


def _runs(ascending: Tensor) -> Iterator[tuple[int, int]]:
    """(first place, count) of every run of consecutive numbers."""
    if not len(ascending):
        return
    breaks = (torch.nonzero(ascending.diff() != 1).flatten() + 1).tolist()
    for first, end in zip([0, *breaks], [*breaks, len(ascending)], strict=True):
        yield first, end - first


def _close_all(descriptors: dict[Path, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])
