"""What a choice knows of a shape: names, bytes, rows of a mix, and what does not fit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitbudget.rounding import nearest
from bitbudget.storage import NATIVE, Choice, Layout, Part, Shape, TensorSpec, index_dtype
from storage.choice_strategies import choices, rounded_choices

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")


@given(fitting=rounded_choices(), seed=st.integers(0, 2**31))
def test_bytes_are_those_of_the_tensors(fitting: tuple[Choice, Shape], seed: int) -> None:
    choice, shape = fitting
    assert choice.misfit(shape) is None
    weight = nearest(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), choice)
    tensors = weight.tensors()
    assert choice.nbytes(shape) == weight.nbytes == sum(tensor.nbytes for tensor in tensors.values())
    specs = NATIVE.specs(weight.choice, shape)
    found = [TensorSpec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    assert found == list(specs)
    assert all(isinstance(part, Part) for part in weight.parts)


@given(choice=choices(), rows=st.integers(1, 200), columns=st.integers(1, 200))
def test_every_choice_has_bytes_or_does_not_fit(choice: Choice, rows: int, columns: int) -> None:
    if choice.misfit((rows, columns)) is None:
        specs = NATIVE.specs(choice, (rows, columns))
        assert choice.nbytes((rows, columns)) == sum(spec.nbytes for spec in specs)
        assert len({spec.name for spec in specs}) == len(specs)
        assert specs[0].name == "weight"
        assert choice.kept or specs[0].nbytes == 0
        assert sum(choice.row_counts(rows)) == (0 if choice.kept else rows)


def names(text: str, shape: Shape) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {spec.name: (spec.dtype, spec.shape) for spec in NATIVE.specs(Choice.parse(text), shape)}


def test_names_of_a_plain_weight() -> None:
    assert names("int3:g32", (10, 96)) == {
        "weight": (torch.bfloat16, (0,)),
        "dense.codes": (torch.int32, (10, 9)),
        "dense.scale": (torch.float16, (10, 3)),
        "dense.zero": (torch.int32, (3,)),
    }
    assert names("int4s:out", (10, 9)).keys() == {"weight", "dense.codes", "dense.scale"}
    assert names("bf16", (10, 9)) == {"weight": (torch.bfloat16, (10, 9))}


def test_names_of_a_mix_with_everything() -> None:
    text = "int8*25%|int4s:scale=bilevel(6,4x2,offset)+outliers:3:bf16/in=scale/act=int8/out=permute"
    assert names(text, (10, 70_000)) == {
        "weight": (torch.bfloat16, (0,)),
        "dense0.rows": (torch.uint16, (3,)),
        "dense0.codes": (torch.int32, (3, 17_500)),
        "dense0.scale": (torch.float16, (3, 1)),
        "dense0.zero": (torch.int32, (1,)),
        "dense1.rows": (torch.uint16, (7,)),
        "dense1.codes": (torch.int32, (7, 8750)),
        "dense1.scale_codes": (torch.int32, (2,)),
        "dense1.scale_step": (torch.float16, (2, 1)),
        "dense1.scale_base": (torch.float16, (2, 1)),
        "outliers.values": (torch.bfloat16, (3,)),
        "outliers.columns": (torch.int32, (3,)),
        "outliers.row_pointers": (torch.int32, (11,)),
        "input_map.scale": (torch.float32, (70_000,)),
        "output_map.rows": (torch.uint16, (10,)),
    }


def test_index_dtypes() -> None:
    assert index_dtype(65_536) == torch.uint16
    assert index_dtype(65_537) == torch.int32


@pytest.mark.parametrize(
    "text, shape, reason",
    [
        ("int4:g128", (8, 96), "96 columns are not divisible by the group size 128"),
        ("int4:g128:out", (96, 256), "96 rows are not divisible by the group size 128"),
        ("int8:g8:out*3|int4", (8, 8), "3 rows are not divisible by the group size 8"),
        ("int8*1%|int4", (8, 8), r"int8\*1% gets none of 8 rows"),
        ("int8*100%|int4", (8, 8), "int4 gets none of 8 rows"),
        ("int8*8|int4", (8, 8), "int4 gets none of 8 rows"),
        ("int4/act=int8:g3", (8, 8), "8 columns are not divisible by the activation group size 3"),
        ("int4+outliers:100%", (2**16, 2**15), "row pointers"),
    ],
)
def test_misfits(text: str, shape: Shape, reason: str) -> None:
    assert reason.replace("\\", "") in (Choice.parse(text).misfit(shape) or "")


@pytest.mark.parametrize("text", ["bf16", "int4", "int4:g8", "int4:g8:out", "int8*50%|int4", "int8:g4:out*4|int4:out"])
def test_fits(text: str) -> None:
    assert Choice.parse(text).misfit((8, 8)) is None


def test_nominal_bits() -> None:
    assert Choice.parse("int4:g8+outliers:1%").nominal_bits((8, 8)) == 4
    assert Choice.parse("int8*25%|int4").nominal_bits((8, 8)) == 5
    assert Choice.parse("bf16").nominal_bits((8, 8)) == 16


def test_rows_of_a_mix_never_exceed_the_rows() -> None:
    assert Choice.parse("int8*6|int6*6|int4").row_counts(10) == (6, 4, 0)
    assert Choice.parse("int8*50%|int6*25%|int4").row_counts(10) == (5, 3, 2)


def test_another_layout_may_count() -> None:
    class Bytes:
        def specs(self, choice: Choice, shape: Shape) -> tuple[TensorSpec, ...]:
            return (TensorSpec("w", torch.uint8, shape),)

    layout: Layout = Bytes()
    assert Choice.parse("int4").nbytes((3, 5), layout) == 15
