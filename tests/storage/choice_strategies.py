"""Hypothesis strategies: every legal choice, as a value and in other spellings, and shapes that fit it."""

from dataclasses import replace
from decimal import Decimal

from hypothesis import strategies as st

from bitbudget.grids import BF16, FP16, FP32, U8, Bilevel, Codec, Grid, PackedInt
from bitbudget.storage import INTEGER_BITS, Activation, Choice, Count, Dense, Outliers, Shape

FLOATS = st.sampled_from([FP16, BF16, FP32])
BILEVEL = st.builds(
    Bilevel, st.integers(1, 8), st.tuples(st.integers(1, 40), st.integers(1, 40)), offset=st.booleans()
)
GROUPS = st.sampled_from([None, 1, 2, 4, 8, 16])
PERCENT = st.integers(1, 100_000_000).map(lambda millionths: Decimal(millionths).scaleb(-6).normalize())
COUNTS = st.one_of(
    st.builds(Count, PERCENT, st.just(True)),
    st.builds(Count, st.integers(1, 10**9 - 1).map(lambda number: Decimal(number).normalize()), st.just(False)),
)


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    bits = draw(st.sampled_from(INTEGER_BITS))
    zero = draw(st.sampled_from(["none", "half", "int", "real"]))
    codecs: dict[str, list[Codec]] = {
        "int": [U8, *(PackedInt(wider) for wider in range(bits + 1, 9))],
        "real": [BF16, FP32, U8, *(PackedInt(wider) for wider in range(bits, 9))],
    }
    codec = None
    if zero in codecs:
        codec = draw(st.one_of(st.none(), st.sampled_from(codecs[zero]), BILEVEL))
    axis = draw(st.sampled_from(["in", "out"]))
    return Grid(
        levels=2**bits,
        zero=zero,
        group=draw(GROUPS),
        axis=axis,
        scale=draw(st.one_of(FLOATS, BILEVEL)),
        zero_codec=codec,
        range="minmax" if axis == "out" else draw(st.sampled_from(["minmax", "clip"])),
    )


@st.composite
def choices(draw: st.DrawFn) -> Choice:
    """Any choice that the grammar can say."""
    if draw(st.integers(0, 9)) == 0:
        return Choice(kept=draw(FLOATS))
    counted = draw(st.lists(st.builds(Dense, grids(), COUNTS), max_size=2))
    return Choice(
        dense=(*counted, Dense(draw(grids()))),
        outliers=draw(st.one_of(st.none(), st.builds(Outliers, COUNTS, FLOATS))),
        input_map=draw(st.sampled_from([None, "scale"])),
        activation=draw(st.one_of(st.none(), st.builds(Activation, st.sampled_from([4, 8]), GROUPS))),
        output_map=draw(st.sampled_from([None, "permute", "scale"])),
    )


@st.composite
def rounded_choices(draw: st.DrawFn) -> tuple[Choice, Shape]:
    """A choice that rounding can make, with a shape it can store."""
    choice = draw(choices().filter(lambda choice: not choice.kept))
    choice = replace(choice, input_map=None, activation=None, output_map=None)
    shares = st.builds(Count, st.sampled_from([Decimal(10), Decimal(25)]), st.just(True))
    dense = tuple(replace(part, count=part.count and draw(shares)) for part in choice.dense)
    if len(dense) > 1:  # rows that a mix takes come in no whole groups
        dense = tuple(replace(part, grid=replace(part.grid, axis="in")) for part in dense)
    if choice.outliers:
        count = draw(st.sampled_from([Count(Decimal(text), True) for text in ("0.5", "3", "100")]))
        choice = replace(choice, outliers=replace(choice.outliers, count=count))
    rows = draw(st.sampled_from([16, 32, 48] if len(dense) == 1 else [20, 37]))
    return replace(choice, dense=dense), (rows, draw(st.sampled_from([16, 48])))


def respelled(choice: Choice) -> str:
    """A legal text of the same choice that is not its canonical one: settings turned round, zeros in the numbers."""
    parts = []
    for text in str(choice).split("/")[0].split("+")[0].split("|"):
        body, star, count = text.partition("*")
        first, *settings = body.split(":")
        if any(setting.startswith("zeros=") for setting in settings):
            settings = [setting for setting in settings if setting.startswith("zero=")] + [
                setting for setting in reversed(settings) if not setting.startswith("zero=")
            ]
        else:
            settings.reverse()
        parts.append(":".join([first, *settings]) + star + count)
    return "|".join(parts) + str(choice)[len(str(choice).split("/")[0].split("+")[0]) :]
