"""The score table: every unit's points with costs and scores, measured once and solved for any budget later.

JSON (`.json`), version 1:

    {"format": "bitbudget-scores", "version": 1,
     "dimensions": ["bytes", …],              one name for every cost
     "inputs": {"weights": "sha256…", …},     what the scores were measured on; read by people and by refusals
     "choices": ["int4:g128", …],             texts, each once
     "units": [{"name": …, "layers": [layer, …],
                "choices": [[index per layer], …], "cost": [[per dimension], …], "score": […], "se": […]}]}

`choices`, `cost`, `score` and `se` hold one entry per point. npz (`.npz`) has the same header without the points as the array
`header` (UTF-8 bytes), and the points of all units one after the other: `points` (per unit), `choices` (int32, a row of
layers after the other), `cost` (int64 [points, dimensions]), `score`, `se` (float64). Neither form can hold code.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from bitbudget.allocation.documents import read_document
from bitbudget.allocation.units import Point, Unit, check_units
from bitbudget.checkpoint.atomic import write_atomic
from bitbudget.errors import InputError

FORMAT, VERSION = "bitbudget-scores", 1


@dataclass(frozen=True)
class ScoreTable:
    """dimensions: names of the points' costs; inputs: what was measured, by hash; choices read from a file are texts."""

    dimensions: tuple[str, ...]
    units: tuple[Unit, ...]
    inputs: Mapping[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the table, as npz where the name ends so, else as JSON."""
        write_atomic(path, self._npz() if path.suffix == ".npz" else self._json())

    @classmethod
    def load(cls, path: Path) -> "ScoreTable":
        """Read a table.

        Raises:
            InputError: the file is no score table, of a newer version, or its numbers do not fit together.
        """
        if path.suffix == ".npz":
            header, arrays = _read_npz(path)
        else:
            header = read_document(path, FORMAT, VERSION)
            arrays = header
        try:
            table = cls(
                dimensions=tuple(header["dimensions"]),
                units=_units(header, arrays) if path.suffix == ".npz" else _listed_units(header),
                inputs=dict(header["inputs"]),
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise InputError(f"The score table {path} is damaged ({error!r}). Measure the scores again.") from error
        check_units(table.units, len(table.dimensions))
        return table

    def _header(self, choices: Sequence[str]) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "dimensions": list(self.dimensions),
            "inputs": dict(self.inputs),
            "choices": list(choices),
        }

    def _json(self) -> bytes:
        places = self._places()
        units = [
            {
                "name": unit.name,
                "layers": list(unit.layers),
                "choices": [[places[str(point.choices[layer])] for layer in unit.layers] for point in unit.points],
                "cost": [list(point.cost) for point in unit.points],
                "score": [point.score for point in unit.points],
                "se": [point.se for point in unit.points],
            }
            for unit in self.units
        ]
        # One unit a line: a table of thousands of points stays readable and comparable.
        head = json.dumps(self._header(list(places)), indent=1, ensure_ascii=False)[:-2]
        lines = ",\n".join(json.dumps(unit, ensure_ascii=False) for unit in units)
        return f'{head},\n "units": [\n{lines}\n]}}\n'.encode()

    def _npz(self) -> bytes:
        places = self._places()
        points = [point for unit in self.units for point in unit.points]
        header = self._header(list(places))
        header["units"] = [{"name": unit.name, "layers": list(unit.layers)} for unit in self.units]
        rows = [
            places[str(point.choices[name])] for unit in self.units for point in unit.points for name in unit.layers
        ]
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            header=np.frombuffer(json.dumps(header, ensure_ascii=False).encode(), dtype=np.uint8),
            points=np.array([len(unit.points) for unit in self.units], dtype=np.int32),
            choices=np.array(rows, dtype=np.int32),
            cost=np.array([point.cost for point in points], dtype=np.int64),
            score=np.array([point.score for point in points]),
            se=np.array([point.se for point in points]),
        )
        return buffer.getvalue()

    def _places(self) -> dict[str, int]:
        """Every choice's text with its place in the list of choices."""
        texts = {str(choice) for unit in self.units for point in unit.points for choice in point.choices.values()}
        return {text: place for place, text in enumerate(sorted(texts))}


def _listed_units(header: Mapping[str, Any]) -> tuple[Unit, ...]:
    texts = header["choices"]
    if min((at for entry in header["units"] for row in entry["choices"] for at in row), default=0) < 0:
        raise IndexError("a choice has a number below 0")
    return tuple(
        Unit(
            entry["name"],
            tuple(
                Point(
                    {layer: texts[at] for layer, at in zip(entry["layers"], row, strict=True)}, tuple(cost), score, se
                )
                for row, cost, score, se in zip(
                    entry["choices"], entry["cost"], entry["score"], entry["se"], strict=True
                )
            ),
        )
        for entry in header["units"]
    )


def _units(header: Mapping[str, Any], arrays: Mapping[str, Any]) -> tuple[Unit, ...]:
    """The units of the npz form, by way of the JSON form's lists."""
    counts = arrays["points"].tolist()
    ends = list(accumulate(counts))
    choices = iter(arrays["choices"].tolist())
    entries = []
    for entry, count, end in zip(header["units"], counts, ends, strict=True):
        rows = [[next(choices) for _ in entry["layers"]] for _ in range(count)]
        values = {name: arrays[name][end - count : end].tolist() for name in ("cost", "score", "se")}
        entries.append({**entry, "choices": rows, **values})
    return _listed_units({**header, "units": entries})


def _read_npz(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        text = arrays.pop("header").tobytes()
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"The file {path} is no score table ({error}).") from error
    return read_document(path, FORMAT, VERSION, text), arrays
