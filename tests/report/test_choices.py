"""The brief of a choice says what the choice itself says."""

import pytest

from bitbudget.report.choices import ONE_GROUP, read
from bitbudget.storage import Choice

TEXTS = [
    "int2",
    "int4:g128",
    "int8s:g64",
    "int4:g128:out",
    "int3:g128+outliers:0.5%",
    "int3:g128+outliers:12:bf16",
    "int8:g128*10%|int4:g128",
    "int8:g64*3|int6:g128*12.5%|int2:g32",
    "int8s*100%|int4",
    "int4:g128:zero=real:zeros=bf16:scale=bilevel(6,16x1,offset)",
    "int8:g128*10%|int4:g128:scale=bf16+outliers:1%/in=scale/act=int8:g64/out=permute",
    "bf16",
    "fp16",
    "fp32",
]


@pytest.mark.parametrize("text", TEXTS)
def test_brief_agrees_with_the_choice(text: str) -> None:
    choice, brief = Choice.parse(text), read(text)
    assert str(choice) == text
    rows = 100_000
    assert brief.bits(rows) == pytest.approx(choice.nominal_bits((rows, 128)))
    assert brief.kept == bool(choice.kept)
    assert brief.outliers == (str(choice.outliers).removeprefix("outliers:") if choice.outliers else "")
    groups = [f"g{part.grid.group}" if part.grid.group else ONE_GROUP for part in choice.dense]
    assert brief.group == "|".join(dict.fromkeys(groups))


def test_everything_else_is_style() -> None:
    assert read("int8s:g64").style == "symmetric"
    assert read("int4:g128:out:scale=bf16").style == "out:scale=bf16"
    assert read("int8:g128*1%|int4s:g128/in=scale/act=int8").style == "|symmetric/in=scale/act=int8"
    assert read("int4:g128").style == read("bf16").style == ""


def test_mean_bits_need_rows_where_a_count_is_a_number() -> None:
    assert read("int8:g128*64|int4:g128").bits(None) is None
    assert read("int8:g128*64|int4:g128").bits(128) == 6.0
    assert read("int8:g128*25%|int4:g128").bits(None) == 5.0


@pytest.mark.parametrize(
    "text", ["", "codebook:4", "int4:g128+lowrank:16", "int4+outliers:1%+outliers:2%", "int4|float3"]
)
def test_a_kind_of_another_version_is_no_error(text: str) -> None:
    brief = read(text)
    assert brief.widths == () and brief.style == text and brief.bits(8) is None
