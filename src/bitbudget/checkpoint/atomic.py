"""Files that are there in full or not at all: written beside their place, synced, renamed; removed when that fails.

A crash or a power cut leaves the old file or none, never half of one (`fsync` of the file before, of the folder after
`rename`: POSIX.1-2017).
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from types import TracebackType

from bitbudget.errors import InputError, OutputError

CHUNK_BYTES = 8 << 20
REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file system does not take files of this size",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "writing there is not permitted",
    errno.EPERM: "writing there is not permitted",
    errno.ENOENT: "the folder does not exist",
}


class Replacement:
    """A file of `nbytes` bytes in the making; it takes the place of `path` when the block ends without an exception.

    The temporary file has a fixed name, so what a killed process left is overwritten by the next attempt. Raises
    OutputError, before anything is written if the disk has too little space.
    """

    def __init__(self, path: Path, nbytes: int) -> None:
        self.path = path
        self.nbytes = nbytes
        self._temporary = path.with_name(f".{path.name}.partial")

    def __enter__(self) -> "Replacement":
        try:
            self._descriptor = self._opened()
        except BaseException:  # Ctrl-C while the file was being made: it is there, but nobody knows it yet
            with suppress(OSError):
                self._temporary.unlink(missing_ok=True)
            raise
        return self

    def _opened(self) -> int:
        with output_errors(self.path, self.nbytes):
            if shutil.disk_usage(self.path.parent).free < self.nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            return os.open(self._temporary, flags, 0o666)

    def write_at(self, content: bytes | memoryview, offset: int) -> None:
        """Writes `content` at byte `offset`."""
        rest = memoryview(content)
        with output_errors(self.path, self.nbytes):
            while rest:
                count = os.pwrite(self._descriptor, rest[:CHUNK_BYTES], offset)
                rest = rest[count:]
                offset += count

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._take_place()
        finally:
            os.close(self._descriptor)
            # A file system that fails here has already raised the error that matters.
            with suppress(OSError):
                self._temporary.unlink(missing_ok=True)

    def _take_place(self) -> None:
        with output_errors(self.path, self.nbytes):
            os.fsync(self._descriptor)
            os.replace(self._temporary, self.path)
            sync_folder(self.path.parent)


def write_atomic(path: str | Path, content: bytes) -> None:
    """Writes a small file so that it is there in full or not at all. Raises OutputError."""
    with Replacement(Path(path), len(content)) as file:
        file.write_at(content, 0)


def copy_atomic(source: str | Path, path: str | Path) -> None:
    """Copies a file (through links) so that the copy is there in full or not at all. Raises InputError, OutputError."""
    with ExitStack() as stack:
        with _input_errors(source):
            stream = stack.enter_context(open(source, "rb", buffering=0))
            size = os.fstat(stream.fileno()).st_size
        file = stack.enter_context(Replacement(Path(path), size))
        offset = 0
        while chunk := _next_chunk(stream, source):
            file.write_at(chunk, offset)
            offset += len(chunk)


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, durably. Raises OutputError."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    with output_errors(folder, 0):
        folder.mkdir(parents=True, exist_ok=True)
        for path in missing:
            sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def output_errors(path: Path, nbytes: int) -> Iterator[None]:
    """Turns an OSError met while writing `path` (of `nbytes` bytes) into an OutputError."""
    try:
        yield
    except OSError as error:
        reason = REASONS.get(error.errno or 0, error.strerror or str(error))
        raise OutputError(
            f"{path} cannot be written: {reason}. {nbytes} bytes are needed, {_free(path.parent)} bytes are free. "
            "Nothing damaged stays behind; make room or permit writing there, or choose another folder."
        ) from error


@contextmanager
def _input_errors(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error


def _next_chunk(stream: FileIO, source: str | Path) -> bytes:
    with _input_errors(source):
        return stream.read(CHUNK_BYTES)


def _free(folder: Path) -> str:
    try:
        return str(shutil.disk_usage(folder).free)
    except OSError:
        return "unknown"
