"""The journal of an unfinished run: one line per finished shard, so that a killed run goes on where it stopped.

The file is JSON lines: first `{"inputs": {name: hash or setting}, "version": 2}`, all that the output depends on, then
`{"shard": file name, "nbytes": ..., "tensors": {name: sha256}}`. A line counts once it is synced; a last line that a crash
tore is dropped.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from bitbudget.checkpoint.atomic import output_errors, sync_folder
from bitbudget.errors import OutputError

JOURNAL_NAME = "journal.jsonl"
JOURNAL_VERSION = 2
CLOSED = -1
SHOWN = 60  # characters of a value that a message shows: longer ones are hashes and lists


class Journal:
    """What a run into `folder` has finished. `finished` maps the file name of a shard to its tensors' SHA-256.

    One process holds a folder's journal at a time. Use as a context manager, or call `close()`; `close_and_remove()` at
    the end of a run that is complete.
    """

    def __init__(self, folder: Path, descriptor: int) -> None:
        self.folder = folder
        self.path = folder / JOURNAL_NAME
        self.finished: dict[str, dict[str, str]] = {}
        self._descriptor = descriptor

    @classmethod
    def open(cls, folder: str | Path, inputs: Mapping[str, str]) -> "Journal":
        """The journal of `folder`, fresh if there is none, else resumed.

        inputs: what the output depends on, by names that a person understands; settings as short texts, the rest as hashes.
        A shard whose file is gone or has another length no longer counts as finished. Raises OutputError if the journal
        belongs to other inputs or another version, is damaged, is held by another process, or cannot be written.
        """
        folder = Path(folder)
        path = folder / JOURNAL_NAME
        with output_errors(path, 0):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        journal = cls(folder, descriptor)
        try:
            with output_errors(path, 0):
                journal._lock()
                journal._resume(inputs)
        except BaseException:
            journal.close()
            raise
        return journal

    @classmethod
    def inputs_of(cls, folder: str | Path) -> dict[str, str] | None:
        """What the unfinished run in `folder` depends on; None where there is none, or not yet a whole line of one.

        Raises OutputError if the journal is damaged, of another version, or cannot be read.
        """
        path = Path(folder) / JOURNAL_NAME
        with output_errors(path, 0):
            content = path.read_bytes() if path.is_file() else b""
        records, _ = _parse(path, content)
        return _first(path, records[0]) if records else None

    @classmethod
    def discard(cls, folder: str | Path) -> None:
        """Removes what a complete run could not remove itself. Raises OutputError if another process holds it."""
        inputs = cls.inputs_of(folder)
        with cls.open(folder, inputs or {}) as journal:
            journal.close_and_remove()

    def record(self, shard: str, tensor_hashes: dict[str, str]) -> None:
        """Notes a shard whose file is complete; the note is durable when this returns. Raises OutputError."""
        file = self.folder / shard
        if not file.is_file():
            raise OutputError(f"{file} was finished but is gone. Leave the folder alone while a run writes into it.")
        nbytes = file.stat().st_size
        self._append({"shard": shard, "nbytes": nbytes, "tensors": tensor_hashes})
        self.finished[shard] = dict(tensor_hashes)

    def close(self) -> None:
        """Lets go of the journal, which stays for a later run."""
        if self._descriptor != CLOSED:
            os.close(self._descriptor)
            self._descriptor = CLOSED

    def close_and_remove(self) -> None:
        """Ends a complete run: the journal disappears."""
        with output_errors(self.path, 0):
            self.path.unlink(missing_ok=True)
            sync_folder(self.folder)
        self.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"Another process is writing into {self.folder} at this moment (it holds {self.path.name}). Wait "
                "for it, stop it, or choose another folder with -o."
            ) from error

    def _resume(self, inputs: Mapping[str, str]) -> None:
        content = self.path.read_bytes()
        records, good = _parse(self.path, content)
        if good < len(content):
            os.ftruncate(self._descriptor, good)
        if not records:
            self._append({"inputs": dict(inputs), "version": JOURNAL_VERSION})
            sync_folder(self.folder)
            return
        refuse_other_run(self.folder, _first(self.path, records[0]), inputs)
        for number, record in enumerate(records[1:], 2):
            shard, nbytes, hashes = (record.get(key) for key in ("shard", "nbytes", "tensors"))
            if not isinstance(shard, str) or not isinstance(hashes, dict):
                raise _damaged(self.path, number)
            file = self.folder / shard
            if file.is_file() and file.stat().st_size == nbytes:
                self.finished[shard] = hashes

    def _append(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, sort_keys=True).encode() + b"\n"
        with output_errors(self.path, len(line)):
            while line:
                line = line[os.write(self._descriptor, line) :]
            os.fsync(self._descriptor)


def differences(there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """What differs between two runs, in words: settings with both values, hashes by name alone."""
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    return [f"{name}{_values(there.get(name), here.get(name))}" for name in names]


def refuse_other_run(folder: Path, there: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Raise OutputError if the unfinished run in `folder` depends on other inputs than those given now."""
    found = differences(there, here)
    if found:
        raise OutputError(
            f"{folder} holds an unfinished run that differs from this one: {'; '.join(found)}. Give the same command with "
            "the same inputs to continue that run, or choose another folder with -o."
        )


def _values(there: str | None, here: str | None) -> str:
    shown = [value for value in (there, here) if value is not None]
    if any(len(value) > SHOWN for value in shown):
        return " (only there)" if here is None else " (only here)" if there is None else ""
    return f" (there {there or 'none'}, here {here or 'none'})"


def _first(path: Path, record: dict[str, Any]) -> dict[str, str]:
    """The inputs that a journal's first line names."""
    if "version" not in record:
        raise _damaged(path, 1)
    if record["version"] != JOURNAL_VERSION:
        raise OutputError(
            f"{path} has version {record['version']}, this program writes version {JOURNAL_VERSION}. Continue "
            "with the program that began the run, or choose another folder with -o."
        )
    inputs = record.get("inputs")
    if not isinstance(inputs, dict) or not all(isinstance(value, str) for value in inputs.values()):
        raise _damaged(path, 1)
    return inputs


def _parse(path: Path, content: bytes) -> tuple[list[dict[str, Any]], int]:
    """The records, and how many bytes of `content` they take: a crash tears the last line, never another one."""
    records: list[dict[str, Any]] = []
    good = 0
    # What follows the last newline was never finished.
    lines = content.split(b"\n")[:-1]
    for number, line in enumerate(lines, 1):
        record = _parse_line(line)
        if record is None and number == len(lines):
            break
        if record is None:
            raise _damaged(path, number)
        records.append(record)
        good += len(line) + 1
    return records, good


def _parse_line(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _damaged(path: Path, number: int) -> OutputError:
    return OutputError(
        f"{path} is damaged: line {number} is no record of a finished shard. Remove the folder to start again, or "
        "choose another one with -o."
    )
