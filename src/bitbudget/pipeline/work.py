"""The folder where a model's measurements are kept between commands: scales, input statistics, scores. Each step's file appears
when the step is finished, so a killed run goes on behind the last of them, and another budget needs none of them again.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from bitbudget.checkpoint.atomic import make_folder, output_errors, write_atomic
from bitbudget.errors import OutputError
from bitbudget.models.source import SourceModel

CACHE_VARIABLE = "BITBUDGET_CACHE"
DIGITS = 20  # of a fingerprint, in a folder's name
DESCRIPTION = "inputs.json"


def cache_folder() -> Path:
    """Where measurements are kept by default: $BITBUDGET_CACHE, else bitbudget in the user's cache folder."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bitbudget"


def source_identity(source: SourceModel) -> dict[str, Any]:
    """What tells one set of weights from another without reading them: headers, sizes and modification times of the files."""
    files = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in source.checkpoint.files]
    return {"files": files, **source_hashes(source)}


def source_hashes(source: SourceModel) -> dict[str, str]:
    """Of what can be read at once: the config and the headers of the weights."""
    config = sha256((source.folder / "config.json").read_bytes()).hexdigest()
    headers = {name: [str(info.dtype), list(info.shape), info.start] for name, info in source.checkpoint.tensors.items()}
    return {"config": config, "tensors": fingerprint(headers)}


def source_files(source: SourceModel) -> dict[str, str]:
    """Size and modification time of every file of weights, under names for people."""
    stats = {path.name: path.stat() for path in source.checkpoint.files}
    return {f"source file {name}": f"{stat.st_size} bytes, mtime {stat.st_mtime_ns}" for name, stat in stats.items()}


def fingerprint(inputs: Mapping[str, Any]) -> str:
    """SHA-256 of JSON values, whatever the order of their names."""
    return sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Work:
    """One folder of measurements."""

    folder: Path

    @classmethod
    def open(cls, root: Path, inputs: Mapping[str, Any]) -> "Work":
        """The folder below `root` for these inputs, made if it is not there. Raises OutputError if it cannot be."""
        folder = root / fingerprint(inputs)[:DIGITS]
        make_folder(folder)
        if not (folder / DESCRIPTION).is_file():
            write_atomic(folder / DESCRIPTION, json.dumps(inputs, indent=1, sort_keys=True).encode() + b"\n")
        return cls(folder)

    def path(self, *parts: str) -> Path:
        return self.folder.joinpath(*parts)

    def finish(self, *parts: str) -> None:
        """Marks a step as finished, after all its files: the mark is durable when this returns."""
        write_atomic(self.path(*parts), b"finished\n")

    def require_space(self, nbytes: int, what: str) -> None:
        """Raise OutputError if the disk has no room for what a step is about to write here."""
        free = shutil.disk_usage(self.folder).free
        if free < nbytes:
            raise OutputError(
                f"{what} take {nbytes:,} bytes in the cache folder, and {self.folder} has {free:,} bytes free. What is measured so "
                "far is kept. Make room, give another folder with --cache, or a smaller --scratch, and give the command again."
            )

    @contextmanager
    def held(self) -> Iterator["Work"]:
        """For this process alone. Raises OutputError while another one works in it."""
        with output_errors(self.folder, 0):
            descriptor = os.open(self.path("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._lock(descriptor)
            yield self
        finally:
            os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"Another process measures the same model with the same settings at this moment (it holds {self.folder}). "
                "Wait for it, or give another folder with --cache."
            ) from error

    def remove(self, *parts: str) -> None:
        """Forget part of it."""
        shutil.rmtree(self.path(*parts), ignore_errors=True)
