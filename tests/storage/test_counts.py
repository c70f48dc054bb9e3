"""Counts: exact, shares rounded half up."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbudget.storage import Count
from storage.choice_strategies import COUNTS


@given(millionths=st.integers(1, 100_000_000), total=st.integers(0, 10**12))
def test_shares_round_half_up_exactly(millionths: int, total: int) -> None:
    count = Count(Decimal(millionths).scaleb(-6), percent=True)
    exact = Fraction(millionths, 10**6) * total / 100
    assert count.of(total) == (2 * exact + 1) // 2
    assert 0 <= count.of(total) <= total


@pytest.mark.parametrize(
    "text, total, number",
    [
        ("50%", 3, 2),
        ("50%", 5, 3),
        ("0.5%", 100, 1),
        ("0.5%", 99, 0),
        ("0.5%", 4096 * 4096, 83886),
        ("0.000001%", 50_000_000, 1),
        ("0.000001%", 49_999_999, 0),
        ("100%", 7, 7),
        ("33.333333%", 3, 1),
        ("12", 7, 7),
        ("5", 7, 5),
    ],
)
def test_examples(text: str, total: int, number: int) -> None:
    count = Count.parse(text)
    assert count is not None
    assert count.of(total) == number


@given(count=COUNTS)
def test_text_round_trip(count: Count) -> None:
    assert Count.parse(str(count)) == count
    assert "E" not in str(count)


@pytest.mark.parametrize(
    "text", ["", "%", "0", "0%", "0.0%", "100.1%", "1.5", ".5%", "5.%", "-1", "1e3", "٣", "1 %", "1234567890", "0x10"]
)
def test_refused(text: str) -> None:
    assert Count.parse(text) is None
