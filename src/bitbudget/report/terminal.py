"""The two channels of a command: results go to stdout, everything else to stderr."""

import json
import math
import sys
import textwrap
from typing import Any

from rich.console import Console
from rich.table import Table

READABLE_WIDTH = 100  # longer lines of prose are hard to read, however wide the terminal is
QUOTED = "    "  # a line that begins like this stays as it is: the pointer below a choice must keep its column


def results() -> Console:
    """Where results go. Text is printed as it is: brackets in a user's text are no markup, numbers have no colours."""
    return Console(markup=False, highlight=False, emoji=False)


def messages() -> Console:
    """Where progress, notes and errors go."""
    return Console(stderr=True, markup=False, highlight=False, emoji=False)


def printable(text: object) -> str:
    """The text with control characters spelled out, so that a name from a file cannot steer the terminal."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else letter.encode("unicode_escape").decode()
        for letter in str(text)
    )


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print a paragraph, wrapped between words; a message that a program reads from stderr stays one line."""
    width = min(console.width, READABLE_WIDTH)
    for line in printable(text).splitlines():
        if (console.is_terminal or not console.stderr) and not line.startswith(QUOTED):
            hanging = " " * (len(line) - len(line.lstrip(" -")))
            # Paths and choices are copied by people: they are never broken inside.
            line = textwrap.fill(line, width, subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False)
        console.print(line, style=style, soft_wrap=True)


def print_json(document: dict[str, Any]) -> None:
    """One JSON document to stdout. NaN and infinity, which JSON does not have, become null."""
    sys.stdout.write(json.dumps(_finite(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value


def new_table(*columns: str, left: int = 1, title: str | None = None) -> Table:
    """A table whose first `left` columns are text and whose others are numbers, aligned at their last digit."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title=title, title_justify="left", title_style="bold")
    for place, column in enumerate(columns):
        text = place < left
        # Names fold rather than get cut: a name that is shown in part is of no use.
        table.add_column(column, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    return table
