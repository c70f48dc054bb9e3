"""solve and diff at the command line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bitbudget.allocation import Plan, Point, ScoreTable, Unit
from bitbudget.cli import app


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Three layers of 2, 3 or 4 bits; what a bit brings differs by a factor of ten from layer to layer."""
    units = tuple(
        Unit(
            f"layer{number}",
            tuple(
                Point({f"layer{number}": f"int{bits}:g128"}, (1000 * bits,), 10.0**-number * 4.0**-bits)
                for bits in (2, 3, 4)
            ),
        )
        for number in range(3)
    )
    path = tmp_path / "scores.json"
    ScoreTable(("bytes",), units, {"text": "abc"}).save(path)
    return path


def run(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.stdout, result.stderr


def test_solve_writes_a_plan_and_tells_how_good_it_is(table: Path, tmp_path: Path) -> None:
    code, text, _ = run("solve", table, "--budget", "bytes=9000", "-o", tmp_path / "plan.json")
    assert code == 0
    assert "proven optimal" in text and "9,000" in text
    plan = Plan.load(tmp_path / "plan.json")
    assert plan.layers == {"layer0": "int4:g128", "layer1": "int3:g128", "layer2": "int2:g128"}


def test_solve_as_json(table: Path) -> None:
    code, text, _ = run("solve", table, "--budget", "bytes=12KB", "--json")
    assert code == 0
    assert json.loads(text)["costs"] == {"bytes": 12000}


def test_budget_out_of_reach(table: Path) -> None:
    code, _, text = run("solve", table, "--budget", "bytes=5999")
    assert code == 4
    assert "6,000" in text and "5,999" in text


@pytest.mark.parametrize("budget", ["bytes", "bytes=", "=5", "bytes=five"])
def test_budget_that_is_none(table: Path, budget: str) -> None:
    code, _, text = run("solve", table, "--budget", budget)
    assert code == 2 and "bytes=4GiB" in text


def test_unknown_dimension(table: Path) -> None:
    code, _, text = run("solve", table, "--budget", "metres=5")
    assert code == 3 and "metres" in text


def test_diff_of_two_plans(table: Path, tmp_path: Path) -> None:
    for name, budget in (("a", 9000), ("b", 10000)):
        assert run("solve", table, "--budget", f"bytes={budget}", "-o", tmp_path / name)[0] == 0
    code, text, _ = run("diff", tmp_path / "a", tmp_path / "b")
    assert code == 0
    assert "1 of 3 layers differ" in text
    assert "layer1: int3:g128 -> int4:g128" in text
    assert "9,000 -> 10,000 (+1,000)" in text


def test_diff_of_folders(tmp_path: Path) -> None:
    for name, choice in (("a", "int4:g128"), ("b", "int3:g128")):
        assert run("quantize", "demo", "--choice", choice, "-o", tmp_path / name, "--no-verify")[0] == 0
    code, text, _ = run("diff", tmp_path / "a", tmp_path / "b" / "bitbudget.json", "--json")
    assert code == 0
    found = json.loads(text)
    assert len(found["changes"]) == 42 and found["layers"] == 43
    assert found["changes"][0]["before"] == "int4:g128" and found["changes"][0]["after"] == "int3:g128"
    assert found["loss"] == [None, None]


def test_diff_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    code, _, text = run("diff", tmp_path / "plan.json", tmp_path / "plan.json")
    assert code == 3 and "bitbudget-plan" in text
