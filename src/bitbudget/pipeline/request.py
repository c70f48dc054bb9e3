"""What a run was asked for, so that the same request on a finished folder is done at once, and another one is refused by name."""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from bitbudget.allocation import Plan
from bitbudget.checkpoint.journal import JOURNAL_NAME, unfinished_inputs
from bitbudget.errors import OutputError
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.budgets import Budget
from bitbudget.pipeline.by_budget import Options
from bitbudget.pipeline.effort import effort_of
from bitbudget.pipeline.record import CONFIG_NAME, RECORD_NAME, read_record
from bitbudget.pipeline.versions import versions
from bitbudget.pipeline.work import fingerprint, tensor_headers

Request = dict[str, Any]


def request_of(
    source: SourceModel, how: str | Budget | Plan, others: Mapping[str, Any], options: Options, text_sha256: str
) -> Request:
    """By name, plain values without times and paths. others: what goes with a single choice, and the size of shards."""
    wanted: dict[str, Any] = {"settings": dict(others)}
    if isinstance(how, str):
        wanted["choice"] = how
    elif isinstance(how, Plan):
        wanted["plan"] = fingerprint(how.to_dict())
    else:
        run = (options.context, options.kv_dtype, options.reserve) if how.memory is not None else ()
        wanted |= {
            "budget": how.to_dict(),
            "method": asdict(options.recipe()),
            "effort": asdict(effort_of(options.effort)),
            "memory": list(run),
        }
    config = sha256((source.folder / CONFIG_NAME).read_bytes()).hexdigest()
    wanted |= {"model": [config, fingerprint(tensor_headers(source))], "text": text_sha256, "versions": versions()}
    assert not any(is_dataclass(value) for value in wanted.values())
    plain: Request = _plain(wanted)
    return plain


def finished(output: Path, request: Request, source: SourceModel) -> dict[str, Any] | None:
    """The record of a folder that this very request has made; None if there is none yet.

    Raises:
        OutputError: the folder belongs to another request, or the model's files are newer than it.
    """
    if (output / JOURNAL_NAME).is_file():
        _refuse_other(output, unfinished_inputs(output), request, "an unfinished")
        return None
    if not (output / RECORD_NAME).is_file() or not (output / CONFIG_NAME).is_file():
        return None
    record, _ = read_record(output)
    _refuse_other(output, hashed(record.get("request") or {}), request, "a finished")
    made = (output / RECORD_NAME).stat().st_mtime_ns
    newer = [path.name for path in source.checkpoint.files if path.stat().st_mtime_ns > made]
    if newer:
        raise OutputError(
            f"{output} was made before the model's file {newer[0]} was changed. Give another folder with -o, or remove this one."
        )
    return record


def hashed(request: Request) -> dict[str, str]:
    """A hash for every name."""
    return {name: fingerprint({"value": value}) for name, value in request.items()}


def _refuse_other(output: Path, found: Mapping[str, str], request: Request, state: str) -> None:
    wanted = hashed(request)
    names = (name for name in sorted({*wanted, *found}) if wanted.get(name) != found.get(name))
    differing = [name for name in names if state == "a finished" or name in wanted]
    if found and differing:
        raise OutputError(
            f"{output} holds {state} run of another request: {', '.join(differing)} differ. Nothing was changed. Give the same "
            "command again to continue or keep that run, another folder with -o, or remove this one."
        )
    if not found and state == "a finished":
        raise OutputError(
            f"The output folder {output} is not empty: it holds a finished bitbudget checkpoint whose record names no request. "
            "Nothing was changed. Give another folder with -o, or remove this one first."
        )


def _plain(value: Any) -> Any:
    """As JSON gives it back: tuples become lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
