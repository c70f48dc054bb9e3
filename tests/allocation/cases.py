"""Small random questions, and their answers by trying everything in exact fractions."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import product

from hypothesis import strategies as st

from bitbudget.allocation import Budgets, Point, Unit

DIMENSIONS = ("bytes", "nanoseconds", "rows")


Values = list[tuple[tuple[int, ...], float]]
# Hypothesis forbids beartype's use of `random` inside strategies, so that these draw plain numbers; `built` makes units.
Drawn = tuple[list[Values], dict[str, int]]


@st.composite
def questions(draw: st.DrawFn, dimensions: int | None = None, most_units: int = 4) -> Drawn:
    """Costs and scores of a few points per unit, equal ones and duplicates among them, and budgets from too little on."""
    count = draw(st.integers(1, 3)) if dimensions is None else dimensions
    scores = draw(st.sampled_from([few_scores(), many_scores()]))
    factor = draw(st.sampled_from([1, 1, 32, 10**9]))
    cost = st.integers(0, draw(st.sampled_from([4, 30]))).map(lambda value: value * factor)
    units = []
    for _ in range(draw(st.integers(1, most_units))):
        costs = st.tuples(*[cost] * count)
        values = draw(st.lists(st.tuples(costs, scores), min_size=1, max_size=4))
        values += values[: draw(st.integers(0, 1))]
        units.append(values)
    return units, draw(budgets_for(units, count))


def built(drawn: Drawn) -> tuple[list[Unit], dict[str, int]]:
    """The units and budgets of a question."""
    return [unit(f"unit{number}", values) for number, values in enumerate(drawn[0])], drawn[1]


def few_scores() -> st.SearchStrategy[float]:
    """Scores that floating point adds exactly and that often tie."""
    return st.integers(0, 12).map(lambda eighths: eighths / 8)


def many_scores() -> st.SearchStrategy[float]:
    """Scores over nine decades."""
    return st.floats(-9.0, 0.0).map(lambda decades: 10.0**decades)


@st.composite
def budgets_for(draw: st.DrawFn, units: Sequence[Values], dimensions: int) -> dict[str, int]:
    """For every dimension a share of what the plans span, now and then less than anything reaches."""
    budgets = {}
    for place in range(dimensions):
        least = sum(min(cost[place] for cost, _ in values) for values in units)
        most = sum(max(cost[place] for cost, _ in values) for values in units)
        budgets[DIMENSIONS[place]] = max(least + (most - least) * draw(st.integers(-1, 20)) // 20, 0)
    return budgets


def unit(name: str, values: Sequence[tuple[tuple[int, ...], float]]) -> Unit:
    """A unit of one layer with points of these costs and scores, choices named by place."""
    points = (Point({name: f"choice{place}"}, cost, score) for place, (cost, score) in enumerate(values))
    return Unit(name, tuple(points))


def plans(units: Sequence[Unit], budgets: Budgets) -> list[tuple[Fraction, tuple[int, ...], tuple[Point, ...]]]:
    """(loss, costs, points) of every plan within the budgets."""
    found = []
    for chosen in product(*(unit.points for unit in units)):
        costs = tuple(sum(point.cost[place] for point in chosen) for place in range(len(budgets)))
        if all(limit is None or total <= limit for total, limit in zip(costs, budgets.values(), strict=True)):
            found.append((loss_of(chosen), costs, chosen))
    return found


def loss_of(points: Sequence[Point]) -> Fraction:
    """Loss without risk, without rounding."""
    return sum((max(Fraction(point.score), Fraction(0)) for point in points), Fraction(0))


def best(units: Sequence[Unit], budgets: Budgets) -> tuple[Fraction, tuple[int, ...]] | None:
    """Least loss and, among plans that lose so little, least costs; None where nothing fits."""
    return min(((loss, costs) for loss, costs, _ in plans(units, budgets)), default=None)


def close(one: float | Fraction, other: float | Fraction) -> bool:
    """Equal up to what the solver's rounding of small questions allows."""
    return abs(Fraction(one) - Fraction(other)) <= Fraction(1, 10**13) * max(abs(Fraction(one)), abs(Fraction(other)))


def labels(points: Mapping[str, Point]) -> dict[str, str]:
    """A plan as text."""
    return {name: point.label for name, point in sorted(points.items())}
