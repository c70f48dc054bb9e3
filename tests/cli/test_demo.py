"""The demo: bytes as forecast, the same in two runs."""

import json
from pathlib import Path

import pytest

from bitbudget.pipeline.demo import Demo, DemoRow, run_demo


def test_two_demos_are_the_same_to_the_byte(tmp_path: Path) -> None:
    choices = ("int3:g128",)
    first, second = (run_demo(tmp_path / name, choices, 2_600_000, "cpu") for name in ("first", "second"))
    assert first.to_dict() == second.to_dict()
    for one, other in zip(first.rows, second.rows, strict=True):
        assert one.weights_bytes == one.forecast_bytes or one.choice == "2,600,000 bytes"
        assert one.weights_bytes <= one.forecast_bytes
        for path in one.folder.iterdir():
            assert path.read_bytes() == (other.folder / path.name).read_bytes()
    assert first.original.weights_bytes > 2 * first.rows[0].weights_bytes


def test_the_demo_as_a_command(invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "bitbudget.pipeline.demo.run_demo", lambda output, **how: run_demo(output, ("int4:g128",), None, "cpu")
    )
    result = invoke("demo", "--output", tmp_path / "kept")
    assert result.exit_code == 0, result.output
    assert "int4:g128" in result.stdout and "bfloat16 (original)" in result.stdout
    assert max(len(line) for line in result.stdout.splitlines() if "±" in line) <= 80
    assert (tmp_path / "kept" / "int4-g128" / "config.json").is_file()
    again = invoke("demo", "--output", tmp_path / "kept")
    assert (again.exit_code, again.stdout) == (0, result.stdout), "a finished folder is not made again"


def test_the_demo_as_json(invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {"kl": 0.1, "kl_se": 0.01, "top1": 0.9, "perplexity": 50.0, "word_perplexity": 400.0}
    measured = numbers | {"tokens": 10, "documents": 2, "window": 256, "stride": 256}
    row = DemoRow("int4:g128", Path(), 6.3, 100, 100, measured)
    monkeypatch.setattr("bitbudget.pipeline.demo.run_demo", lambda output, **how: Demo(row, (row,)))
    again = invoke("demo", "--json")
    assert [row["choice"] for row in json.loads(again.stdout)["rows"]] == ["int4:g128"]
