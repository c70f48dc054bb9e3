"""Plans from wherever they stand: a plan file, or the record of a finished folder. Nothing here loads torch."""

from pathlib import Path
from typing import Any

from bitbudget.allocation import Plan
from bitbudget.pipeline.record import RECORD_NAME, read_record

BYTES = "bytes"


def read_plan(path: Path) -> Plan:
    """The plan in a file, or the one that a folder's record (bitbudget.json) tells of.

    Raises:
        InputError: there is none, or it is damaged.
    """
    if path.is_dir() or path.name == RECORD_NAME:
        record, _ = read_record(path if path.is_dir() else path.parent)
        return _recorded(record)
    return Plan.load(path)


def _recorded(record: dict[str, Any]) -> Plan:
    """What was written, as a plan: nothing was solved, so there is no predicted loss and no bound."""
    plan = record["plan"]
    return Plan.chosen_by_hand(
        layers={name: entry["choice"] for name, entry in plan["layers"].items()},
        costs={name: {BYTES: entry["bytes"]} for name, entry in plan["layers"].items()},
        settings=plan["settings"],
        inputs={"config": record["source"]["config_sha256"], "text": record["text"]["sha256"]},
    )
