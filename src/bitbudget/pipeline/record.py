"""The record of a finished folder, bitbudget.json, read without loading torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitbudget.checkpoint.journal import JOURNAL_NAME
from bitbudget.errors import InputError

RECORD_NAME = "bitbudget.json"
CONFIG_NAME = "config.json"
REQUEST = "request"  # of the record: settings by which the same command is known again
NEEDED = frozenset({"plan", "output", "tensors", "source", "text"})


def read_record(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """bitbudget.json and config.json of a folder that `quantize` finished.

    Raises:
        InputError: it is none, it is unfinished, or one of the files is damaged.
    """
    if not path.is_dir():
        raise InputError(f"There is no folder {path}.")
    if not (path / RECORD_NAME).is_file() or not (path / CONFIG_NAME).is_file():
        unfinished = (path / JOURNAL_NAME).is_file()
        how = (
            "It is an unfinished run: the same quantize command continues it." if unfinished else "Run quantize first."
        )
        raise InputError(
            f"{path} is no finished bitbudget checkpoint (it needs {CONFIG_NAME} and {RECORD_NAME}). {how}"
        )
    record, config = _json(path / RECORD_NAME), _json(path / CONFIG_NAME)
    if not isinstance(config.get("quantization_config"), dict) or not record.keys() >= NEEDED:
        raise InputError(
            f"{path}: {CONFIG_NAME} has no quantization_config, or {RECORD_NAME} lacks what was planned; a file is damaged."
        )
    return record, config


def as_texts(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as texts for people, and for a journal."""
    return {name: _text(value) for name, value in settings.items()}


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(one)}" for name, one in value.items())
    return ", ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); it is damaged.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object; it is damaged.")
    return content
