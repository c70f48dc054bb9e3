"""Pictures: which are written, the same bytes for the same data, and what is told when one cannot be drawn."""

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bitbudget.allocation import Plan, Point, ScoreTable, Unit, plan_from_table
from bitbudget.errors import InputError, OutputError
from bitbudget.report.curves import candidates, curve_of, frontier_figure, predicted_figure
from bitbudget.report.drawing import draw
from bitbudget.report.heatmap import bits_figure
from bitbudget.report.plots import save_plots

GUARD: dict[str, Any] = {
    "winner": "plan",
    "candidates": [
        {"name": "plan", "bytes": 9000, "memory": 9300, "predicted": 0.02, "kl": 0.025, "kl_se": 0.001, "perplexity": 47.0},
        {"name": "uniform int3:g128", "bytes": 8800, "predicted": 0.05, "kl": 0.04, "kl_se": None},
        {"name": "hand recipe $x$ \x1b", "bytes": 8900, "predicted": None, "kl": 0.06, "kl_se": 0.002},
        {"name": "as it is", "bytes": 32000, "predicted": 0.0, "kl": 0.0, "kl_se": 0.0},
    ],
}


def size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG file."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and b"Software" not in content
    return struct.unpack(">II", content[16:24])


def plan(dimension: str = "bytes") -> Plan:
    units = tuple(
        Unit(
            f"u{number}",
            tuple(Point({f"u{number}": f"int{b}"}, (1000 * b,), 4.0**-b / (number + 1)) for b in (2, 3, 4, 8)),
        )
        for number in range(3)
    )
    return plan_from_table(ScoreTable((dimension,), units, {}), {dimension: 10000})


def texts(figure: Any) -> str:
    """Every label of a figure's legends."""
    return "\n".join(text.get_text() for legend in figure.legends for text in legend.get_texts())


def test_all_pictures(mixed, tmp_path: Path) -> None:
    written = save_plots(tmp_path / "a" / "b", mixed, plan(), GUARD, "model, 10 kB")
    assert [path.name for path in written] == ["bits.png", "frontier.png", "predicted.png"]
    assert sorted((tmp_path / "a" / "b").iterdir()) == sorted(written)
    for path in written:
        width, height = size(path)
        assert 600 < width < 2000 and 400 < height < 2000


def test_pictures_only_of_what_there_is(mixed, tmp_path: Path) -> None:
    names = [path.name for path in save_plots(tmp_path, mixed)]
    assert names == ["bits.png"]
    by_hand = Plan.chosen_by_hand({"a": "int4"}, {"a": {"bytes": 4}}, {}, {})
    assert [path.name for path in save_plots(tmp_path, mixed, by_hand, {})] == ["bits.png"]
    assert [path.name for path in save_plots(tmp_path, mixed, plan())] == ["bits.png", "frontier.png"]
    unmeasured = {"candidates": [{"name": "plan", "bytes": 5, "predicted": 0.1}]}
    assert [path.name for path in save_plots(tmp_path, mixed, None, unmeasured)] == ["bits.png", "frontier.png"]


def test_the_same_data_give_the_same_bytes(mixed, tmp_path: Path) -> None:
    import matplotlib

    first = [path.read_bytes() for path in save_plots(tmp_path / "1", mixed, plan(), GUARD)]
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "savefig.dpi": 33}):
        second = [path.read_bytes() for path in save_plots(tmp_path / "2", mixed, plan(), GUARD)]
        assert matplotlib.rcParams["font.size"] == 20
    assert first == second
    assert "matplotlib.pyplot" not in sys.modules


def test_pictures_grow_with_the_model(make_layers, tmp_path: Path) -> None:
    heights = []
    for blocks in (2, 32, 80):
        layers = make_layers([{"a.q_proj": "int4:g128", "a.k_proj": "int3:g128"}] * blocks, {"head": "int6"})
        heights.append(size(save_plots(tmp_path / str(blocks), layers)[0])[1])
    assert heights[0] < heights[1] < heights[2] < 4000


@pytest.mark.parametrize("known", [True, False])
def test_layers_of_every_kind(make_layers, tmp_path: Path, known: bool) -> None:
    rows = [{"attn.qkv": "int4"}, {"ssm.in": "int8:g128*64|int4:g128", "mlp.experts.0.up": "fp32"}]
    for layers in (
        make_layers(rows, {"head$": "bf16"}, known),
        make_layers(rows, {}, known),
        make_layers([], {"e": "int2"}),
    ):
        save_plots(tmp_path, layers)
    layers = make_layers(rows, {"x": "codebook"}, known=False)
    assert [text.get_text() for text in bits_figure(draw(layers)).axes[0].texts].count("?") == 1


def test_no_label_covers_another(mixed) -> None:
    figure = bits_figure(draw(mixed))
    figure.draw_without_rendering()
    cells = figure.axes[0]
    labels = [text for text in (*cells.texts, *cells.get_xticklabels(), *cells.get_yticklabels()) if text.get_text()]
    boxes = [label.get_window_extent() for label in labels]
    covered = [
        (labels[i].get_text(), labels[j].get_text())
        for i in range(len(boxes))
        for j in range(i)
        if boxes[i].overlaps(boxes[j])
    ]
    assert covered == []


def test_frontier_shows_budget_choice_and_candidates() -> None:
    found = texts(frontier_figure(curve_of(plan()), candidates(GUARD)))
    for words in (
        "best plans",
        "budget, 9.77 KiB",
        "chosen plan: 9.77 KiB, predicted 0.0",
        "uniform int3:g128",
        "as it is",
    ):
        assert words in found
    figure = frontier_figure(curve_of(plan()), candidates(GUARD))
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "log"]
    assert figure.axes[0].get_xlabel() == "size of all layers, KiB"


@pytest.mark.parametrize(
    ("dimension", "label", "budget"),
    [
        ("nanoseconds", "time, ms", "budget, 0.01 ms"),
        ("disk", "size of the weight files, KiB", "budget, 9.77 KiB"),
        ("code_bits", "code_bits", "budget, 10,000.00"),
    ],
)
def test_frontier_of_another_cost_has_no_bytes_in_it(dimension: str, label: str, budget: str) -> None:
    figure = frontier_figure(curve_of(plan(dimension)), candidates(GUARD))
    assert [axes.get_xlabel() for axes in figure.axes] == [label]
    assert "uniform" not in texts(figure)
    assert budget in texts(figure).splitlines()


def test_predicted_names_what_it_does_not_show() -> None:
    found = texts(predicted_figure(candidates(GUARD)))
    assert "not shown: hand recipe \\$x\\$ \\x1b (not predicted, measured 0.06)" in found
    assert "not shown: as it is (predicted 0, measured 0)" in found
    assert "measured = predicted" in found


@pytest.mark.parametrize(
    "guard", [{"candidates": [{}]}, {"candidates": 5}, {"candidates": [{"name": "a", "kl": "much"}]}]
)
def test_a_damaged_comparison(mixed, tmp_path: Path, guard: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="comparison of candidates is damaged"):
        save_plots(tmp_path, mixed, None, guard)


def test_without_matplotlib(mixed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match="pip install matplotlib"):
        save_plots(tmp_path / "plots", mixed)
    assert not (tmp_path / "plots").exists()


def test_a_folder_that_cannot_be_made(mixed, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        save_plots(tmp_path / "file", mixed)


def test_report_loads_matplotlib_only_to_draw() -> None:
    code = (
        "import sys, bitbudget.report.plots; print(*sorted(set(sys.modules) & {'torch', 'transformers', 'matplotlib'}))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.split() == []
