"""All budgets at once."""

from collections.abc import Sequence
from fractions import Fraction
from math import gcd
from operator import mul

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocation.cases import Drawn, best, built, close, loss_of, questions
from bitbudget.allocation import Unit, frontier, solve
from bitbudget.allocation.solution import readable_prices
from bitbudget.errors import InputError


@settings(max_examples=300)
@given(questions())
def test_every_corner_is_the_best_plan_of_its_cost(drawn: Drawn) -> None:
    units, budgets = built(drawn)
    dimension = list(budgets)[-1]
    place = len(budgets) - 1
    curve = frontier(units, dimension, budgets)
    for cost, loss in zip(curve.costs, curve.losses, strict=True):
        wanted = best(units, {name: cost if name == dimension else None for name in budgets})
        assert wanted is not None
        assert abs(loss - float(wanted[0])) <= 1e-12 * max(curve.losses[0], 1e-300)
        plan = curve.plan(cost)
        assert sum(point.cost[place] for point in plan.values()) == cost
        assert close(loss_of(list(plan.values())), wanted[0])


@settings(max_examples=200)
@given(questions(dimensions=1))
def test_upgrades_pay_less_and_less_and_no_plan_lies_below_them(drawn: Drawn) -> None:
    units, budgets = built(drawn)
    curve = frontier(units, "bytes", budgets)
    slopes = [upgrade.loss / upgrade.cost for upgrade in curve.upgrades]
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in zip(slopes, slopes[1:], strict=False))
    assert list(curve.losses) == sorted(curve.losses, reverse=True)
    middle = (curve.costs[0] + curve.costs[-1]) // 2
    below = max(place for place, cost in enumerate(curve.costs) if cost <= middle)
    chord = curve.losses[below]
    if below + 1 < len(curve.costs):
        chord -= slopes[below] * (middle - curve.costs[below])
    assert solve(units, {"bytes": middle}).loss >= chord - 1e-12 * curve.losses[0]


@settings(max_examples=100)
@given(questions(dimensions=1))
def test_the_bound_and_price_are_those_of_the_curve(drawn: Drawn) -> None:
    units, budgets = built(drawn)
    curve = frontier(units, "bytes", budgets)
    assert len(curve.thinned(3)) <= 3
    assert curve.thinned(10_000) == list(zip(curve.costs, curve.losses, strict=True))
    if curve.upgrades:
        first = solve(units, {"bytes": curve.costs[0]})
        assert first.shadow_prices["bytes"] == pytest.approx(curve.upgrades[0].loss / curve.upgrades[0].cost, rel=1e-9)
    assert solve(units, {"bytes": curve.costs[-1]}).shadow_prices["bytes"] == 0.0


@settings(max_examples=150)
@given(questions(), st.lists(st.sampled_from([0.0, 0.5, 0.99, 1.01, 2.0]), min_size=3, max_size=3))
def test_shadow_prices_give_the_best_bound(drawn: Drawn, factors: list[float]) -> None:
    """Σ_u min_p (loss + prices · cost) - prices · budgets is largest at the prices, for any number of budgets."""
    units, budgets = built(drawn)
    if best(units, budgets) is None:
        return
    solution = solve(units, budgets)
    prices = [solution.shadow_prices[name] for name in budgets]
    others = [price * factor for price, factor in zip(prices, factors, strict=False)]
    limits = [_reachable(units, place, limit) for place, limit in enumerate(budgets.values())]
    here, there = (_lagrangian(units, limits, own) for own in (prices, others))
    assert here >= there - 1e-6 * max(abs(here), abs(there))
    assert here <= solution.loss * (1 + 1e-9)


def _reachable(units: Sequence[Unit], place: int, limit: int) -> int:
    """The limit without what no plan could use, since all costs are multiples of something above the least."""
    least = [min(point.cost[place] for point in entry.points) for entry in units]
    above = [point.cost[place] - low for entry, low in zip(units, least, strict=True) for point in entry.points]
    return limit - (limit - sum(least)) % (gcd(*above) or 1)


def _lagrangian(units: Sequence[Unit], limits: Sequence[int], prices: Sequence[float]) -> float:
    exact = [Fraction(price) for price in prices]
    total = -sum(price * limit for price, limit in zip(exact, limits, strict=True))
    for entry in units:
        paid = [sum(map(mul, exact, point.cost)) for point in entry.points]
        total += min(Fraction(point.score) + cost for point, cost in zip(entry.points, paid, strict=True))
    return float(total)


def test_prices_are_told_per_mib_and_per_millisecond() -> None:
    told = readable_prices({"bytes": 2.0**-20, "nanoseconds": 1e-6, "rows": 3.0}, "loss")
    assert told == {"loss per MiB": 1.0, "loss per ms": pytest.approx(1.0), "loss per rows": 3.0}


def test_unknown_dimensions_are_refused() -> None:
    units, budgets = built(([[((1,), 1.0)]], {"bytes": 3}))
    with pytest.raises(InputError, match="litres"):
        frontier(units, "litres", budgets)
