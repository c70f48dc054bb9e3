"""The latency table: measured times of kernels on one device, from which points take their nanoseconds.

JSON, version 1:

    {"format": "bitbudget-latency", "version": 1,
     "device": {"name": …, …},          what was measured on, as text
     "constant": {"1": nanoseconds},    batch → time of a token outside all layers
     "entries": [{"choice": "int4:g128", "shapes": [[out, in], …], "batch": 1, "nanoseconds": 19200, "spread": 300}]}

Several shapes in one entry are layers that one fused kernel computes. `nanoseconds` is the median of the runs and `spread` half
the distance of their quartiles, both whole numbers, so that budgets in time are as exact as those in bytes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from bitbudget.allocation.documents import read_document
from bitbudget.checkpoint.atomic import write_atomic
from bitbudget.errors import InputError

FORMAT, VERSION = "bitbudget-latency", 1
Shape = tuple[int, int]


@dataclass(frozen=True)
class Latency:
    """The time of one kernel call: choice's text, (out, in) of the layers it computes, batch; times in nanoseconds."""

    choice: str
    shapes: tuple[Shape, ...]
    batch: int
    nanoseconds: int
    spread: int = 0


@dataclass(frozen=True)
class LatencyTable:
    """Times on one device; constant: batch → nanoseconds of a token outside all layers."""

    device: Mapping[str, str]
    entries: tuple[Latency, ...]
    constant: Mapping[int, int] = field(default_factory=dict)

    @cached_property
    def _times(self) -> dict[tuple[str, tuple[Shape, ...], int], int]:
        return {(entry.choice, entry.shapes, entry.batch): entry.nanoseconds for entry in self.entries}

    def nanoseconds(self, choice: object, shapes: Sequence[Shape], batch: int = 1) -> int:
        """Time of one call for layers of these shapes, in this order.

        Raises:
            InputError: it was not measured.
        """
        found = self._times.get((str(choice), tuple(shapes), batch))
        if found is None:
            known = sorted({entry.choice for entry in self.entries if entry.shapes == tuple(shapes)})
            raise InputError(
                f"The latency table of {self.device.get('name', 'this device')} has no time for {choice} at shapes "
                f"{list(shapes)} and batch {batch}; measured there: {', '.join(known) or 'nothing'}. Measure it, or leave "
                "the choice out."
            )
        return found

    def save(self, path: Path) -> None:
        """Write the table as JSON, one entry a line."""
        head = {
            "format": FORMAT,
            "version": VERSION,
            "device": dict(self.device),
            "constant": {str(batch): time for batch, time in self.constant.items()},
        }
        rows = [
            {
                "choice": entry.choice,
                "shapes": [list(shape) for shape in entry.shapes],
                "batch": entry.batch,
                "nanoseconds": entry.nanoseconds,
                "spread": entry.spread,
            }
            for entry in self.entries
        ]
        lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        text = f'{json.dumps(head, indent=1, ensure_ascii=False)[:-2]},\n "entries": [\n{lines}\n]}}\n'
        write_atomic(path, text.encode())

    @classmethod
    def load(cls, path: Path) -> "LatencyTable":
        """Read a table. Raises InputError for a file that is none, or is damaged."""
        document = read_document(path, FORMAT, VERSION)
        try:
            return cls(
                device={str(key): str(value) for key, value in document["device"].items()},
                entries=tuple(
                    Latency(
                        choice=str(row["choice"]),
                        shapes=tuple((int(out), int(columns)) for out, columns in row["shapes"]),
                        batch=int(row["batch"]),
                        nanoseconds=_whole(row["nanoseconds"]),
                        spread=_whole(row["spread"]),
                    )
                    for row in document["entries"]
                ),
                constant={int(batch): _whole(time) for batch, time in document["constant"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"The latency table {path} is damaged ({error!r}). Measure it again.") from error


def _whole(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no whole number of nanoseconds")
    return value
