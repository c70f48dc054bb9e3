"""The JSON files of this floor: each says its format and version first."""

import json
from pathlib import Path
from typing import Any

from bitbudget.errors import InputError


def read_document(path: Path, form: str, version: int, text: bytes | None = None) -> dict[str, Any]:
    """The content of a JSON file of a given format, not of a newer version.

    Raises:
        InputError: it cannot be read, is something else, or was written by a newer bitbudget.
    """
    try:
        document = json.loads(path.read_bytes() if text is None else text)
    except (OSError, ValueError) as error:
        raise InputError(f"The file {path} cannot be read as JSON ({error}).") from error
    found = document.get("format") if isinstance(document, dict) else None
    if found != form:
        raise InputError(f"The file {path} is no {form} file: its format is {found!r}.")
    if not isinstance(document.get("version"), int) or document["version"] > version:
        raise InputError(
            f"The file {path} has version {document.get('version')!r} of {form}; this bitbudget reads up to {version}. "
            "Update bitbudget."
        )
    return document
