"""The bits of every layer as text: what stands where, and that it fits."""

import re
from io import StringIO

import pytest
from rich.console import Console

from bitbudget.report.bits import bar, show_bits
from bitbudget.report.drawing import draw, role, stored_bits

LINEARS = tuple(f"self_attn.{name}_proj" for name in "qkvo") + tuple(
    f"mlp.{name}_proj" for name in ("gate", "up", "down")
)


def test_a_mixed_plan(mixed, drawn) -> None:
    lines = drawn(mixed)
    assert lines[0].split() == ["self_attn", "mlp"]
    assert lines[1].split() == ["block", "q_proj", "v_proj", "up_proj", "down_proj", "bits"]
    bits = [f"{stored_bits(own):.3f}" for own in ([e for e in mixed.values() if e["block"] == b] for b in (1, 2))]
    assert lines[2].split()[:-1] == ["0-1", "3", "3", "3", "3", bits[0]]
    assert lines[3].split()[:-1] == ["2", "4.4", "4g64", "3+", "16", bits[1]]
    assert lines[4].split()[:2] == ["all", "blocks"]
    assert lines[5].split()[:2] == ["model.embed_tokens", "4a"]
    assert lines[6].split()[:2] == ["lm_head", "6"]
    assert lines[7].split()[:3] == ["all", "layers", f"{stored_bits(mixed.values()):.3f}"]
    legend = " ".join(lines[8:])
    for phrase in (
        "bits of a code, groups of 128",
        "16: kept as a float",
        "with a point: rows of several widths",
        "g64: groups of 64",
        "a: with scale=bf16",
        "+: with outliers (0.5%)",
        "stored bits a weight (bars end at 8)",
    ):
        assert phrase in legend


def test_numbers_end_below_their_headings(mixed, drawn) -> None:
    heading, *rows = drawn(mixed)[1:4]
    for name in ("q_proj", "v_proj", "up_proj", "down_proj", "bits"):
        end = heading.index(name) + len(name)
        assert all(row[end - 1] != " " and row[end : end + 1] == " " for row in rows)


def test_text_in_a_file_is_plain(mixed, drawn) -> None:
    assert "\x1b" not in "".join(drawn(mixed))
    assert all(line == line.rstrip() for line in drawn(mixed))
    file = StringIO()
    show_bits(Console(file=file, force_terminal=True, color_system="truecolor", width=80), mixed)
    assert "\x1b[" in file.getvalue()


@pytest.mark.parametrize("width", [30, 44, 60, 80, 100, 200])
def test_lines_fit(make_layers, drawn, width: int) -> None:
    layers = make_layers(
        [dict.fromkeys(LINEARS, f"int{bits}:g64+outliers:1%") for bits in (2, 3, 8)], {"lm_head": "int4"}
    )
    lines = drawn(layers, width)
    assert max(map(len, lines)) <= width
    text = " ".join(lines)
    for name in ("q", "gate", "down"):
        assert f" {name}" in text
    assert ("names without _proj" in text) == (width < 100)


def test_columns_that_do_not_fit_go_below(make_layers, drawn) -> None:
    layers = make_layers([dict.fromkeys(LINEARS, f"int{bits}:g128") for bits in (2, 3)])
    lines = drawn(layers, 30)
    assert sum(line.lstrip().startswith("block") for line in lines) > 1
    assert sum(line.endswith("bits") for line in lines) == 1


def test_short_names_stay_different(make_layers, drawn) -> None:
    layers = make_layers([{"mlp.down": "int4", "mlp.down_proj": "int3", "mlp.up_proj": "int2"}])
    assert drawn(layers, 44)[1].split()[1:4] == ["down", "down_proj", "up"]


@pytest.mark.parametrize(("alike", "rows", "headings"), [(True, 1, 1), (False, 80, 4)])
def test_eighty_blocks(make_layers, drawn, alike: bool, rows: int, headings: int) -> None:
    choices = ["int3:g128" if alike else f"int{2 + block % 3}:g128" for block in range(80)]
    lines = drawn(make_layers([dict.fromkeys(LINEARS, choice) for choice in choices]))
    assert sum(bool(re.match(r" *[0-9]+(-[0-9]+)? +[0-9]", line)) for line in lines) == rows
    assert sum(line.lstrip().startswith("block") for line in lines) == headings


def test_experts_share_a_column(make_layers, drawn) -> None:
    names = [f"mlp.experts.{number}.up_proj" for number in range(3)]
    some = dict(zip(names, ("int2:g128", "int4:g128+outliers:1%", "int8:g128*50%|int4:g128"), strict=True))
    lines = drawn(make_layers([dict.fromkeys(names, "int4:g128"), some]))
    assert lines[0].split() == ["mlp.experts.*"]
    assert [line.split()[1] for line in lines[2:4]] == ["4", "2-6+"]
    assert "several layers in one place" in " ".join(lines)


def test_blocks_need_not_be_alike(make_layers, drawn) -> None:
    lines = drawn(make_layers([{"attn.qkv": "int4"}, {"ssm.in": "int3"}, {}, {"attn.qkv": "int4"}]))
    assert [line.split()[:2] for line in lines[2:5]] == [["0", "4"], ["1", "3"], ["3", "4"]]
    assert lines[3].index("3") < lines[3].rindex("3") < len(lines[3])
    assert "one group a row" in " ".join(lines)


def test_layers_outside_blocks_alone(make_layers, drawn) -> None:
    lines = drawn(make_layers([], {"embed": "int4:g128", "a.very.long.name" * 4: "codebook"}, known=False))
    assert lines[0].split() == ["embed", "4"]
    assert lines[1].split()[-1] == "?" and "?: a choice of another kind" in lines[2]
    assert drawn({}) == []


def test_a_plan_without_sizes_has_no_bits(make_layers, drawn) -> None:
    lines = drawn(make_layers([{"a.b": "int8:g128*64|int4:g128"}, {"a.b": "int8:g128*25%|int4:g128"}], known=False))
    assert [line.split() for line in lines[1:4]] == [["block", "b"], ["0", "8|4"], ["1", "5.0"]]
    assert "all blocks" not in lines and "stored" not in lines[-1]


def test_a_name_cannot_steer_the_terminal(drawn) -> None:
    layers = {"x\x1b[2J": {"choice": "int4", "block": None}, "h.0.a\x1b[2J.b\x1b": {"choice": "int4", "block": 0}}
    assert "\x1b" not in "".join(drawn(layers))


@pytest.mark.parametrize(
    ("name", "block", "text"),
    [
        ("model.layers.1.mlp.up_proj", 1, "model.layers.*.mlp.up_proj"),
        ("h.11.attn.1.c", 11, "h.*.attn.1.c"),
        ("0.weight", 0, "*.weight"),
        ("lm_head", None, "lm_head"),
    ],
)
def test_the_same_layer_of_all_blocks_has_one_name(name: str, block: int | None, text: str) -> None:
    assert role(name, {"block": block}) == text


def test_many_settings_have_letters_of_their_own(make_layers) -> None:
    layers = make_layers([{"a.b": f"int4:g128/act=int8:g{number}"} for number in range(1, 40)], known=False)
    marks = [row.cells[0].mark for row in draw(layers).blocks if row.cells[0]]
    assert len(set(marks)) == 39
    assert not any("g" in mark for mark in marks)


def test_bars() -> None:
    assert [bar(share, 4) for share in (0.0, 0.03125, 0.5, 1.0, 2.0)] == ["", "▏", "██", "████", "████"]
