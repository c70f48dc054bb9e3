"""Results on disk: JSON for programs, a table for people, both with what they were measured on."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Processor count, load and versions: a timing means nothing without them."""
    return {
        "processors": os.cpu_count(),
        "load_1_minute": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "scipy": version("scipy"),
    }


def write(
    name: str, title: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]], notes: Sequence[str]
) -> None:
    """`results/name.json` and `results/name.md`."""
    RESULTS.mkdir(exist_ok=True)
    document = {"title": title, "machine": machine(), "notes": list(notes), "rows": list(rows)}
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    lines = [f"# {title}", "", *notes, "", f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    lines += [f"| {' | '.join(str(row.get(column, '')) for column in columns)} |" for row in rows]
    measured = ", ".join(f"{key} {value}" for key, value in document["machine"].items())
    (RESULTS / f"{name}.md").write_text("\n".join([*lines, "", f"Measured with {measured}.", ""]))
