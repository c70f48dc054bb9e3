"""The closed forms of BAQ."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allocation.cases import unit
from bitbudget.allocation import equal_loss_bits, mixing_gain, nearest_points, solve
from bitbudget.errors import BudgetError, InputError

SENSITIVITIES = st.lists(st.tuples(st.floats(1e-9, 1.0), st.integers(1, 50)), min_size=1, max_size=12)
WIDE = {"least": -100.0, "most": 100.0}


@given(SENSITIVITIES, st.floats(0.0, 8.0), st.sampled_from([2.0, 1.95]))
def test_without_limits_all_lose_the_same_per_weight_and_the_budget_is_exact(drawn, mean: float, decay: float) -> None:
    sensitivities, sizes = [list(column) for column in zip(*drawn, strict=True)]
    bits = equal_loss_bits(sensitivities, sizes, mean, decay=decay, **WIDE)
    assert sum(b * n for b, n in zip(bits, sizes, strict=True)) == pytest.approx(
        mean * sum(sizes), abs=1e-9 * sum(sizes)
    )
    losses = [c / n * 2 ** (-decay * b) for c, n, b in zip(sensitivities, sizes, bits, strict=True)]
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-9)
    total = sum(loss * n for loss, n in zip(losses, sizes, strict=True))
    uniform = sum(sensitivities) * 2 ** (-decay * mean)
    assert total / uniform == pytest.approx(mixing_gain(sensitivities, sizes), rel=1e-9)
    assert mixing_gain(sensitivities, sizes) <= 1 + 1e-12


@given(SENSITIVITIES, st.floats(2.0, 4.0), st.data())
def test_within_limits_no_exchange_helps(drawn, mean: float, data) -> None:
    sensitivities, sizes = [list(column) for column in zip(*drawn, strict=True)]
    bits = equal_loss_bits(sensitivities, sizes, mean, least=2.0, most=4.0)
    assert all(2.0 <= b <= 4.0 for b in bits)
    assert sum(b * n for b, n in zip(bits, sizes, strict=True)) == pytest.approx(mean * sum(sizes), rel=1e-9)
    giver, taker = (data.draw(st.integers(0, len(bits) - 1)) for _ in range(2))
    step = 1e-3
    if giver != taker and bits[giver] - step / sizes[giver] >= 2 and bits[taker] + step / sizes[taker] <= 4:
        moved = list(bits)
        moved[giver] -= step / sizes[giver]
        moved[taker] += step / sizes[taker]
        assert _loss(sensitivities, moved) >= _loss(sensitivities, bits) * (1 - 1e-12)


def _loss(sensitivities, bits) -> float:
    return sum(c * 4.0**-b for c, b in zip(sensitivities, bits, strict=True))


def test_equal_units_get_equal_bits_and_mixing_gains_nothing() -> None:
    assert equal_loss_bits([3.0] * 4, [10] * 4, 2.5) == pytest.approx([2.5] * 4)
    assert mixing_gain([3.0] * 4, [10] * 4) == pytest.approx(1.0)


def test_dead_units_get_the_least_and_disturb_no_mean() -> None:
    bits = equal_loss_bits([0.0, 1.0, 1.0], [10, 10, 10], 2.0, least=0.0, most=8.0)
    assert bits == pytest.approx([0.0, 3.0, 3.0])
    assert mixing_gain([0.0, 1.0, 4.0], [1, 1, 1]) == pytest.approx(2.0 / 2.5)
    assert mixing_gain([0.0], [1]) == 1.0
    assert equal_loss_bits([0.0, 1.0], [1, 1], 6.0, least=0.0, most=8.0) == pytest.approx([4.0, 8.0])


def test_one_huge_unit_meets_the_cap_and_the_rest_share_what_is_left() -> None:
    bits = equal_loss_bits([1e12, 1.0, 1.0], [1, 1, 1], 4.0, least=0.0, most=8.0)
    assert bits == pytest.approx([8.0, 2.0, 2.0])


def test_limits_are_refused_that_cannot_hold() -> None:
    with pytest.raises(BudgetError):
        equal_loss_bits([1.0], [1], 9.0, most=8.0)
    with pytest.raises(InputError):
        equal_loss_bits([1.0, 2.0], [1], 2.0)
    with pytest.raises(InputError):
        mixing_gain([-1.0], [1])


def test_rounded_water_filling_starts_the_solver() -> None:
    """A dense palette: the exact plan is no worse than the rounded closed form, and close to it."""
    sensitivities = [0.5, 4.0, 32.0, 1.0]
    palette = [bits / 8 for bits in range(8, 65)]
    units = [
        unit(f"u{number}", [((round(bits * 800),), c * 4.0**-bits) for bits in palette])
        for number, c in enumerate(sensitivities)
    ]
    bits = equal_loss_bits(sensitivities, [800] * 4, 3.0, least=1.0, most=8.0)
    start = nearest_points(units, {f"u{number}": value * 800 for number, value in enumerate(bits)})
    ideal = sum(c * 4.0**-b for c, b in zip(sensitivities, bits, strict=True))
    solution = solve(units, {"bytes": 3 * 800 * 4}, start=start)
    assert ideal * (1 - 1e-9) <= solution.loss <= sum(point.score for point in start.values())
    assert solution.loss <= ideal * 1.05
