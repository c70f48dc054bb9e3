"""Where an output folder stands before a run into it begins: nothing there, an unfinished run, a result, or something else.

All that can be known from headers and settings is refused here, before hours are spent on measuring.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bitbudget.checkpoint.journal import JOURNAL_NAME, Journal, differences, refuse_other_run
from bitbudget.errors import OutputError
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.record import CONFIG_NAME, RECORD_NAME, REQUEST, as_texts, read_record
from bitbudget.pipeline.work import source_files

LATE = frozenset({"output", "scales"})  # what a journal names that is known only after planning


def finished_before(output: Path, request: Mapping[str, Any], source: SourceModel) -> dict[str, Any] | None:
    """The record of a folder that this very request has finished; None where there is still something to write.

    request: see `pipeline.request`.

    Raises:
        OutputError: the folder holds something else, another command's result or its unfinished run, or a damaged result.
    """
    refuse_file(output)
    if not output.is_dir() or not any(output.iterdir()):
        return None
    if (output / RECORD_NAME).is_file() and (output / CONFIG_NAME).is_file():
        return _finished(output, request, source)
    there = Journal.inputs_of(output)
    if there is not None:
        known = {name: value for name, value in there.items() if name not in LATE}
        refuse_other_run(output, known, as_texts(request) | source_files(source))
    refuse_occupied(output)
    return None


def refuse_file(output: Path) -> None:
    """Raise OutputError if the output is a file."""
    if output.exists() and not output.is_dir():
        raise OutputError(f"The output {output} is a file. Give a folder with -o.")


def refuse_occupied(output: Path) -> None:
    """Raise OutputError if the output is a file, or a folder that holds anything but an unfinished run of ours."""
    refuse_file(output)
    if output.is_dir() and any(output.iterdir()) and not (output / JOURNAL_NAME).is_file():
        ours = " (a finished bitbudget checkpoint)" if (output / RECORD_NAME).is_file() else ""
        raise OutputError(
            f"The output folder {output} is not empty{ours} and holds no unfinished run of bitbudget. Nothing was changed. "
            "Give another folder with -o, or remove this one first."
        )


def _finished(output: Path, request: Mapping[str, Any], source: SourceModel) -> dict[str, Any]:
    record, _ = read_record(output)
    there = record.get(REQUEST)
    if not isinstance(there, dict):
        raise _refusal(output, "its record does not say by which command")
    found = differences(as_texts(there), as_texts(request))
    if found:
        raise _refusal(output, f"of another command: {'; '.join(found)}")
    finished_at = (output / RECORD_NAME).stat().st_mtime_ns
    newer = [path for path in _inputs(source) if path.stat().st_mtime_ns > finished_at]
    if newer:
        raise _refusal(
            output,
            f"older than the model's file {newer[0]}",
            f"If that file holds what it held, `bitbudget verify {output} --against MODEL` shows it. ",
        )
    changed = next(_changed(output, record), None)
    if changed is not None:
        raise _refusal(output, f"and damaged since: {changed}")
    # A run that was killed between its last file and this step leaves its journal.
    if (output / JOURNAL_NAME).is_file():
        Journal.discard(output)
    return record


def _inputs(source: SourceModel) -> list[Path]:
    return [*source.checkpoint.files, source.folder / CONFIG_NAME]


def _changed(output: Path, record: dict[str, Any]) -> Iterator[str]:
    """Files of the result that are gone or have another length."""
    for name, entry in record["output"]["files"].items():
        path = output / name
        if not path.is_file():
            yield f"{name} is gone"
        elif path.stat().st_size != entry["bytes"]:
            yield f"{name} holds {path.stat().st_size:,} bytes instead of {entry['bytes']:,}"
    for name in record["other_files"]["copied"]:
        if not (output / name).is_file():
            yield f"{name} is gone"


def _refusal(output: Path, why: str, advice: str = "") -> OutputError:
    return OutputError(
        f"The output folder {output} is not empty: it holds a finished bitbudget checkpoint, {why}. Nothing was changed. {advice}"
        "Give another folder with -o, or remove this one first."
    )
