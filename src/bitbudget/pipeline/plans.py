"""Plans from wherever they stand: a plan file, or the record of a finished folder. Reading one does not load torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bitbudget.allocation import Plan
from bitbudget.pipeline.record import RECORD_NAME, read_record

if TYPE_CHECKING:
    from bitbudget.pipeline.output import OutputPlan

BYTES = "bytes"


def decision(output: "OutputPlan", inputs: Mapping[str, str]) -> Plan:
    """The plan behind an output whose choices the user named: nothing was solved, so no loss is predicted.

    inputs: name -> hash of what the output depends on.
    """
    return Plan.chosen_by_hand(
        layers={planned.layer.name: str(planned.choice) for planned in output.layers},
        costs={planned.layer.name: {BYTES: planned.nbytes} for planned in output.layers},
        settings=output.settings,
        inputs=inputs,
    )


def read_plan(path: Path) -> Plan:
    """The plan in a file, or the one in a folder's record (bitbudget.json).

    Raises:
        InputError: there is none, or it is damaged.
    """
    if path.is_dir() or path.name == RECORD_NAME:
        folder = path if path.is_dir() else path.parent
        record, _ = read_record(folder)
        return Plan.from_dict(record["plan"], str(folder / RECORD_NAME))
    return Plan.load(path)
