"""`plan` and `quantize` by a budget, as a user gives them."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

SMALL = ("--effort", "fast", "--widths", "2,4", "--groups", "32", "--outliers", "0", "--device", "cpu")


def document(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def words(result: Result) -> str:
    return " ".join(result.output.split())


def test_plan_then_quantize(invoke, tiny: Path, tmp_path: Path) -> None:
    plan, scores, once, twice = (tmp_path / name for name in ("plan.json", "scores.npz", "once", "twice"))
    found = document(invoke("plan", tiny, "--bits", "8", *SMALL, "-o", plan, "--scores", scores, "--json"))
    assert found["output"]["stored_bits"] <= 8 and found["memory"] is None
    assert found["plan"]["layers"] == json.loads(plan.read_text())["layers"]
    names = [one["name"] for one in found["guard"]["candidates"]]
    assert names[0] == "plan" and found["guard"]["winner"] in names
    assert invoke("solve", scores, "--budget", f"bytes={found['plan']['costs']['bytes']}").exit_code == 0
    as_text = invoke("plan", tiny, "--bits", "8", *SMALL)
    for said in ("8 bits", "Compared on", "Taken:", "stored bits a weight"):
        assert said in as_text.stdout or said == "8 bits"
    record = document(invoke("quantize", tiny, "--bits", "8", *SMALL, "-o", once, "--json"))
    assert document(invoke("quantize", tiny, "--plan", plan, "-o", twice, "--device", "cpu", "--json"))
    assert sum(path.stat().st_size for path in once.glob("*.safetensors*")) == found["output"]["disk_bytes"]
    assert json.dumps(record).count(found["guard"]["winner"])
    for path in once.iterdir():
        if path.name != "bitbudget.json":  # names the command
            assert path.read_bytes() == (twice / path.name).read_bytes(), path.name


def test_a_memory_budget_says_what_it_pays_for(invoke, tiny: Path) -> None:
    found = document(invoke("plan", tiny, "--memory", "1GB", "--context", "64", *SMALL, "--json"))
    assert found["memory"]["context"] == 64 and found["memory"]["budget"] == 10**9
    assert found["memory"]["packing"] > 0
    shown = invoke("plan", tiny, "--memory", "1GB", "--context", "64", *SMALL)
    assert shown.exit_code == 0 and "at a context of 64 tokens" in words(shown)
    assert "nothing was calibrated" in words(shown)
    refused = invoke("plan", tiny, "--memory", "100KB", "--context", "64", *SMALL)
    assert refused.exit_code == 4 and "--memory 100,000 bytes cannot be met: at least" in words(refused)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (("--weights", "1KB"), "--weights 1,000 bytes cannot be met: at least"),
        (("--disk", "1KB"), "--disk 1,000 bytes cannot be met: at least"),
        (("--bits", "1.5"), "--bits 1.5 cannot be met: at least"),
        (("--code-bits", "1.5"), "--code-bits 1.5 cannot be met: at least 2.0 bits a weight"),
    ],
)
def test_a_budget_out_of_reach_has_its_exit_code(invoke, tiny: Path, tmp_path: Path, budget: tuple[str, str], said: str) -> None:
    for command in (("plan", tiny), ("quantize", tiny, "-o", tmp_path / "out")):
        result = invoke(*command, *budget, *SMALL)
        assert result.exit_code == 4, result.output
        assert said in words(result)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Say in one way"),
        (("--bits", "4", "--choice", "int4:g32"), "Say in one way"),
        (("--choice", "int4:g32", "--widths", "2,4"), "--widths would change nothing"),
        (("--choice", "int4:g32", "--context", "12"), "--context would change nothing"),
        (("--bits", "4", "--embedding", "int4:g32"), "--embedding would change nothing"),
        (("--bits", "4", "--method", "gptq"), "no method called 'gptq'"),
        (("--bits", "4", "--effort", "slow"), "no effort called 'slow'"),
        (("--bits", "4", "--widths", "7"), "int7"),
        (("--bits", "4", "--widths", "four"), "whole numbers"),
        (("--bits", "4", "--groups", "0"), "g0"),
        (("--bits", "4", "--widths", "8", "--outliers", "many"), "outliers:many"),
        (("--bits", "4", "--widths", "8", "--range", "wide"), "no range rule called 'wide'"),
        (("--bits", "-1"), "makes no sense"),
        (("--bits", "nan"), "makes no sense"),
        (("--bits", "4", "--scratch", "1KB"), "scratch limit"),
        (("--weights", "1GB",), "nothing would be quantized"),
    ],
)
def test_what_cannot_be_asked(invoke, tiny: Path, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    result = invoke("quantize", tiny, "-o", tmp_path / "out", *arguments)
    assert result.exit_code == 3, result.output
    assert said in words(result)
    assert not (tmp_path / "out").exists()


def test_no_budget_is_no_plan(invoke, tiny: Path) -> None:
    result = invoke("plan", tiny)
    assert result.exit_code == 3 and "No budget was given" in words(result)


def test_a_plan_that_needs_no_scores_writes_none(invoke, tiny: Path, tmp_path: Path) -> None:
    result = invoke("plan", tiny, "--weights", "1GB", *SMALL, "--scores", tmp_path / "scores.json")
    assert result.exit_code == 0, result.output
    assert "was not written" in words(result) and not (tmp_path / "scores.json").exists()
