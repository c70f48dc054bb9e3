"""The text of choices: round trip, one canonical form, and errors that point at the character."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbudget.errors import InputError
from bitbudget.storage import Choice
from storage.choice_strategies import choices, respelled

# beartype picks at random which item of a tuple it checks, also where a strategy builds a choice; hypothesis minds.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")


@given(choice=choices())
def test_text_round_trip(choice: Choice) -> None:
    assert Choice.parse(str(choice)) == choice
    assert str(Choice.parse(str(choice))) == str(choice)


@given(choice=choices())
def test_another_spelling_is_the_same_choice(choice: Choice) -> None:
    assert Choice.parse(respelled(choice)) == choice


@pytest.mark.parametrize(
    "text, canonical",
    [
        ("int4:out:g128", "int4:g128:out"),
        ("int4:zeros=u4", "int4"),
        ("int4:scale=fp16", "int4"),
        ("int8:zeros=u8", "int8"),
        ("int8:zeros=byte", "int8:zeros=byte"),
        ("int4:zero=real:zeros=fp16", "int4:zero=real"),
        ("int4:scale=bf16:zero=real:out:g8", "int4:g8:out:zero=real:scale=bf16"),
        ("int8*010.50%|int4", "int8*10.5%|int4"),
        ("int8*0410|int4", "int8*410|int4"),
        ("int8*1000|int4", "int8*1000|int4"),
        ("int4+outliers:100%:fp16", "int4+outliers:100%"),
        ("int4+outliers:100.000000%", "int4+outliers:100%"),
        ("int4/in=scale/act=int8:g64/out=permute", "int4/in=scale/act=int8:g64/out=permute"),
    ],
)
def test_canonical_form(text: str, canonical: str) -> None:
    assert str(Choice.parse(text)) == canonical


# The caret of the text stands under the character that does not fit.
BAD = [
    ("", 0, "'int' and a width"),
    ("4bit", 0, "'int' and a width"),
    ("INT4", 0, "'int' and a width"),
    ("int", 3, "a width of 2, 3, 4, 5, 6, 8"),
    ("int7:g128", 3, "a width of"),
    ("int04", 3, "a width of"),
    ("int٤", 3, "a width of"),
    ("int" + "9" * 5000, 3, "a width of"),
    ("int4 ", 4, "the end"),
    ("int4\n", 4, "the end"),
    ("int4:", 5, "a group size"),
    ("int4:g", 5, "a group size"),
    ("int4:g0", 5, "a group size"),
    ("int4:g128:", 10, "a group size"),
    ("int4:g128:g64", 10, "not given before"),
    ("int4:out:out", 9, "not given before"),
    ("int4:outer", 5, "a group size"),
    ("int4:zero=none", 5, "'real' or 'half'"),
    ("int4s:zero=real", 6, "asymmetric"),
    ("int4:zeros=u3", 5, "at least u4"),
    ("int4:zeros=fp16", 5, "hold this grid's zeros"),
    ("int4s:zeros=u4", 6, "hold this grid's zeros"),
    ("int4:zeros=byte:zero=real", 16, "before zeros="),
    ("int4:scale=byte", 11, "fp16, bf16, fp32"),
    ("int4:scale=bilevel(9,1x1)", 11, "bilevel"),
    ("int4:scale=bilevel(6,16)", 11, "bilevel"),
    ("int4:scale=bilevel(6,1000000000x1)", 11, "bilevel"),
    ("int8|int4", 4, "'*' and a count"),
    ("int8*10%", 8, "'|' and the width"),
    ("int8*10%|int4*5%", 16, "'|' and the width"),
    ("int8*10%|", 9, "'int' and a width"),
    ("int8*0%|int4", 5, "above 0"),
    ("int8*0|int4", 5, "above 0"),
    ("int8*101%|int4", 5, "100 %"),
    ("int8*1.5|int4", 5, "a share"),
    ("int8*1.2.3%|int4", 5, "a share"),
    ("int8*0.1234567%|int4", 5, "a share"),
    ("int4+low_rank:8", 5, "'outliers:'"),
    ("int4+outliers", 5, "'outliers:'"),
    ("int4+outliers:", 14, "above 0"),
    ("int4+outliers:1%:", 17, "fp16, bf16 or fp32"),
    ("int4+outliers:1%+outliers:1%", 16, "the end"),
    ("int4/", 5, "in=scale"),
    ("int4/act=int6", 12, "4 or 8"),
    ("int4/act=int88", 12, "4 or 8"),
    ("int4/in=scale/in=scale", 14, "once each"),
    ("int4/in=scale/in=scaleact=int8", 14, "once each"),
    ("int4/act=int8/act=intout=permute", 14, "once each"),
    ("int4/out=scale/in=scale", 15, "in this order"),
    ("int4/in=scale+outliers:1%", 13, "the end"),
    ("fp16:g128", 4, "the end"),
    ("bf16/in=scale", 4, "the end"),
    ("fp16|int4", 4, "the end"),
    ("fp8", 0, "'int' and a width"),
]


@pytest.mark.parametrize("text, place, expected", BAD, ids=[text[:30] for text, _, _ in BAD])
def test_errors_point_at_the_character(text: str, place: int, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        Choice.parse(text)
    message = str(caught.value)
    assert f"at character {place + 1}:" in message
    assert expected in message
    if "\n" not in text:
        _, shown, caret, examples = message.split("\n")
        assert shown == f"    {text}"
        assert caret.index("^") == 4 + place
        assert "int4:g128" in examples


@given(text=st.one_of(st.text(max_size=20), st.text("int234568:g*|+/%.zeroscal=fpbuxwd(),", max_size=40)))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        choice = Choice.parse(text)
    except InputError:
        return
    assert Choice.parse(str(choice)) == choice


@given(choice=choices(), data=st.data())
def test_a_damaged_text_is_read_or_refused(choice: Choice, data: st.DataObject) -> None:
    text = str(choice)
    place = data.draw(st.integers(0, len(text) - 1))
    damaged = text[:place] + data.draw(st.sampled_from(["", "0", ":", "s", "x", "%"])) + text[place + 1 :]
    try:
        assert Choice.parse(str(Choice.parse(damaged))) == Choice.parse(damaged)
    except InputError as error:
        assert "at character" in str(error)
