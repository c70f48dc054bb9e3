"""Plans, score tables and latency tables: written, read, compared, solved again."""

import json
from pathlib import Path

import pytest

from allocation.cases import unit
from bitbudget.allocation import (
    Latency,
    LatencyTable,
    Objective,
    Plan,
    Point,
    Rule,
    ScoreTable,
    Settings,
    Unit,
    diff,
    plan_from_table,
)
from bitbudget.errors import InputError, OutputError

TABLE = ScoreTable(
    dimensions=("bytes", "nanoseconds"),
    units=(
        Unit("qkv", tuple(Point({"q": text, "k": text}, (bits * 2**40 + 1, time), score, score / 9)
                          for text, bits, time, score in [("int3:g128", 3, 7, 0.3), ("int4:g128", 4, 8, 0.1)])),
        unit("head", [((6, 60), 1e-9), ((8, 80), 0.0)]),
    ),
    inputs={"weights": "abc", "text": "def"},
)  # fmt: skip


@pytest.mark.parametrize("name", ["scores.json", "scores.npz"])
def test_a_score_table_comes_back_to_the_bit(tmp_path: Path, name: str) -> None:
    TABLE.save(tmp_path / name)
    assert ScoreTable.load(tmp_path / name) == TABLE
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_plan_is_readable_and_comes_back(tmp_path: Path) -> None:
    plan = plan_from_table(
        TABLE, {"bytes": 7 * 2**40}, Settings(Objective(risk=1.0), (Rule("head", veto=("choice1",)),))
    )
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == Plan.from_dict(plan.to_dict())
    document = json.loads((tmp_path / "plan.json").read_text())
    assert document["layers"] == {"head": "choice0", "k": "int4:g128", "q": "int4:g128"}
    assert document["costs"] == {"bytes": 4 * 2**40 + 7, "nanoseconds": 68}
    assert document["budgets"] == {"bytes": 7 * 2**40, "nanoseconds": None}
    assert document["settings"]["objective"]["risk"] == 1.0
    assert document["inputs"] == {"weights": "abc", "text": "def"}
    assert document["frontier"]["dimension"] == "bytes"
    assert document["optimal"] is True
    assert document["gap"] == 0.0
    assert set(document["solver"]) == {"bitbudget", "numpy", "scipy"}


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        plan_from_table(TABLE, {"bytes": 7 * 2**40}).save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_diff_names_layers_and_totals() -> None:
    small, large = (plan_from_table(TABLE, {"bytes": budget}) for budget in (4 * 2**40, 7 * 2**40))
    difference = diff(small, large)
    assert [(change.layer, change.before, change.after) for change in difference.changes] == [
        ("k", "int3:g128", "int4:g128"),
        ("q", "int3:g128", "int4:g128"),
    ]
    assert difference.lines()[0] == "2 of 3 layers differ"
    assert "k: int3:g128 -> int4:g128" in difference.lines()
    assert any("(+1,099,511,627,776)" in line for line in difference.lines())
    assert diff(small, small).changes == ()
    other = plan_from_table(ScoreTable(TABLE.dimensions, TABLE.units[:1], {"weights": "xyz"}), {"bytes": 7 * 2**40})
    assert diff(small, other).inputs == ("text", "weights")
    assert "head: choice1 -> absent" in diff(large, other).lines()


def test_latencies_are_found_or_refused(tmp_path: Path) -> None:
    shapes = ((4096, 4096), (1024, 4096))
    table = LatencyTable(
        {"name": "a card"},
        (Latency("int4:g128", shapes, 1, 19_200, 300), Latency("int3", shapes[:1], 1, 10_500)),
        {1: 5},
    )
    table.save(tmp_path / "latency.json")
    loaded = LatencyTable.load(tmp_path / "latency.json")
    assert loaded == table
    assert loaded.nanoseconds("int4:g128", shapes) == 19_200
    with pytest.raises(InputError, match="batch 8"):
        loaded.nanoseconds("int4:g128", shapes, batch=8)


@pytest.mark.parametrize("kind", [ScoreTable, LatencyTable, Plan])
def test_files_that_are_something_else_are_refused(tmp_path: Path, kind) -> None:
    path = tmp_path / "file.json"
    with pytest.raises(InputError, match="cannot be read"):
        kind.load(path)
    path.write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        kind.load(path)
    path.write_text('{"format": "tea"}')
    with pytest.raises(InputError, match="format is 'tea'"):
        kind.load(path)
    form = {ScoreTable: "scores", LatencyTable: "latency", Plan: "plan"}[kind]
    path.write_text(json.dumps({"format": f"bitbudget-{form}", "version": 2}))
    with pytest.raises(InputError, match="version 2"):
        kind.load(path)
    path.write_text(json.dumps({"format": f"bitbudget-{form}", "version": 1}))
    with pytest.raises(InputError, match="damaged"):
        kind.load(path)


def test_an_npz_with_objects_is_refused(tmp_path: Path) -> None:
    import numpy as np

    np.savez(tmp_path / "scores.npz", header=np.array([{"code": print}], dtype=object))
    with pytest.raises(InputError, match="no score table"):
        ScoreTable.load(tmp_path / "scores.npz")


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        TABLE.save(tmp_path / "nowhere" / "scores.json")


def test_unknown_budgets_are_refused() -> None:
    with pytest.raises(InputError, match="litres"):
        plan_from_table(TABLE, {"litres": 3})
