"""bench: every layer is timed, and the totals are the sums."""

import json
from pathlib import Path

import pytest

from bitbudget.kernels import supported_isas


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitbudget.pipeline.bench.SECONDS", 0.0)
    monkeypatch.setattr("bitbudget.pipeline.bench.PROBE_BYTES", 16 << 20)


@pytest.mark.parametrize("kernels", ["a16", "a8", "reference"])
def test_every_layer_is_timed(invoke, stored: Path, kernels: str) -> None:
    result = invoke("bench", stored, "--kernels", kernels, "--tokens", "3", "--threads", "1", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["tokens"], found["threads"], found["dtype"]) == (3, 1, "float32")
    assert {row["kernels"] for row in found["rows"]} == {kernels if supported_isas() else "reference"}
    assert sum(row["layers"] for row in found["rows"]) == found["total"]["layers"] == 21
    total = found["total"]
    for name in ("seconds", "nbytes", "stored_bytes"):
        assert total[name] == pytest.approx(sum(row["layers"] * row[name] for row in found["rows"]))
    for row in [*found["rows"], total]:
        assert row["nbytes"] >= row["stored_bytes"] > 0
        assert row["share_of_bandwidth"] == pytest.approx(row["bytes_per_second"] / found["bandwidth"])
    assert total["bytes_per_second"] == pytest.approx(total["nbytes"] / total["seconds"])


def test_the_table(invoke, stored: Path) -> None:
    shown = invoke("bench", stored, "--dtype", "bfloat16")
    assert shown.exit_code == 0, shown.output
    assert "150×64, int4:g64" in shown.stdout and "in bfloat16 on one thread" in " ".join(shown.stdout.split())
    assert max(map(len, shown.stdout.splitlines())) <= 80


def test_what_cannot_be_timed(invoke, stored: Path, tmp_path: Path) -> None:
    assert invoke("bench", tmp_path / "absent").exit_code == 3
    assert "not of 'int8'" in invoke("bench", stored, "--dtype", "int8").stderr
    assert "no kernels 'a4'" in invoke("bench", stored, "--kernels", "a4").stderr
