"""The solver's answers against trying everything."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocation.cases import Drawn, best, budgets_for, built, close, labels, plans, questions, unit
from bitbudget.allocation import Effort, Infeasible, Point, Settings, Solution, Unit, cheapest, solve


def check(units: list[Unit], budgets: dict[str, int]) -> Solution | None:
    """Solve, and compare with the best of all plans."""
    wanted = best(units, budgets)
    if wanted is None:
        with pytest.raises(Infeasible):
            solve(units, budgets)
        return None
    solution = solve(units, budgets)
    assert solution.optimal
    assert solution.gap == 0.0
    assert close(solution.loss, wanted[0])
    assert solution.costs == {
        name: sum(point.cost[place] for point in solution.points.values()) for place, name in enumerate(budgets)
    }
    assert all(unused >= 0 for unused in solution.unused.values())
    return solution


@settings(max_examples=1000)
@given(questions(dimensions=1))
def test_one_budget(question: Drawn) -> None:
    check(*built(question))


@settings(max_examples=400)
@given(questions(dimensions=2))
def test_two_budgets(question: Drawn) -> None:
    check(*built(question))


@settings(max_examples=150)
@given(questions(dimensions=3))
def test_three_budgets(question: Drawn) -> None:
    check(*built(question))


@pytest.mark.slow
@settings(max_examples=6000)
@given(questions(most_units=6))
def test_many_more(question: Drawn) -> None:
    check(*built(question))


@settings(max_examples=120)
@given(questions(), st.randoms(use_true_random=False))
def test_among_equal_losses_the_cheapest_whatever_the_order_of_the_input(question: Drawn, random) -> None:
    units, budgets = built(question)
    solution = check(units, budgets)
    if solution is None:
        return
    exact = [entry for entry in plans(units, budgets) if float(entry[0] * 8).is_integer()]
    if exact and float(solution.loss * 8).is_integer():
        assert tuple(solution.costs.values()) == min(entry[:2] for entry in exact)[1]
    shuffled = [Unit(entry.name, tuple(random.sample(entry.points, len(entry.points)))) for entry in units]
    random.shuffle(shuffled)
    assert labels(solve(shuffled, budgets).points) == labels(solution.points)


@settings(max_examples=40)
@given(questions())
def test_more_budget_never_loses_more(question: Drawn) -> None:
    units, budgets = built(question)
    previous = None
    for share in (0, 1, 2, 3, 4):
        try:
            loss = solve(units, {name: limit + limit * share // 4 for name, limit in budgets.items()}).loss
        except Infeasible:
            assert previous is None
            continue
        assert previous is None or loss <= previous * (1 + 1e-13)
        previous = loss


@settings(max_examples=80)
@given(questions(), st.integers(0, 3))
def test_halves_of_a_unit(question: Drawn, place: int) -> None:
    """Tied halves change nothing; free halves never lose more."""
    units, budgets = built(question)
    doubled = {name: 2 * limit for name, limit in budgets.items()}
    whole = units[place % len(units)]
    others = [with_costs(entry, 2, 1) for entry in units if entry is not whole]
    both = Unit(whole.name, tuple(_both(point) for point in whole.points))
    halves = [with_costs(Unit(f"{whole.name}.{side}", whole.points), 1, 2) for side in ("a", "b")]
    try:
        solution = solve(units, budgets)
    except Infeasible:
        return
    assert close(solve([*others, both], doubled).loss, solution.loss)
    assert solve([*others, *halves], doubled).loss <= solution.loss * (1 + 1e-13)


def _both(point: Point) -> Point:
    """Two halves that share a choice: one point, each half's cost and half its score, summed."""
    (name, choice), *_ = point.choices.items()
    total = tuple(cost + cost for cost in point.cost)
    return Point({f"{name}.a": choice, f"{name}.b": choice}, total, point.score / 2 + point.score / 2)


def with_costs(whole: Unit, factor: int, share: int) -> Unit:
    """A unit's points with costs times a factor and scores over a share, its layer under its own name."""
    points = (
        Point(
            dict.fromkeys([whole.name], next(iter(point.choices.values()))),
            tuple(cost * factor for cost in point.cost),
            point.score / share,
        )
        for point in whole.points
    )
    return Unit(whole.name, tuple(points))


@settings(max_examples=200)
@given(questions(), st.integers(0, 20))
def test_cheapest_within_a_loss(question: Drawn, step: int) -> None:
    units, budgets = built(question)
    dimension = next(iter(budgets))
    lifted = {name: None if name == dimension else limit for name, limit in budgets.items()}
    everything = plans(units, lifted)
    losses = sorted({entry[0] for entry in everything}) or [Fraction(1)]
    limit = float(losses[min(step, len(losses) - 1)])
    sure = [costs[0] for loss, costs, _ in everything if loss <= Fraction(limit) * (1 - Fraction(1, 10**12))]
    barely = [costs[0] for loss, costs, _ in everything if loss <= Fraction(limit) * (1 + Fraction(1, 10**12))]
    if not barely:
        with pytest.raises(Infeasible):
            cheapest(units, limit, dimension, budgets)
        return
    try:
        solution = cheapest(units, limit, dimension, budgets)
    except Infeasible:
        assert not sure
        return
    assert solution.optimal
    assert min(barely) <= solution.costs[dimension] <= min(sure, default=solution.costs[dimension])
    assert solution.loss <= limit * (1 + 1e-12)


EFFORTS = [Effort(1, 0, 0, 0), Effort(3, 0, 9, 1), Effort(1, 50, 0, 2), Effort(8, 1, 2, 4), Effort(1, 0, 0)]


@settings(max_examples=150)
@given(questions(), st.sampled_from(EFFORTS))
def test_little_effort_leaves_a_valid_bound(question: Drawn, effort: Effort) -> None:
    units, budgets = built(question)
    wanted = best(units, budgets)
    try:
        solution = solve(units, budgets, Settings(effort=effort))
    except Infeasible as error:
        assert wanted is None or not error.proven
        return
    assert wanted is not None
    assert solution.lower_bound <= float(wanted[0]) * (1 + 1e-13)
    assert solution.loss >= float(wanted[0]) * (1 - 1e-13)
    assert not solution.optimal or close(solution.loss, wanted[0])


@settings(max_examples=100)
@given(questions(dimensions=2))
def test_the_tree_alone_proves_as_well(question: Drawn) -> None:
    units, budgets = built(question)
    wanted = best(units, budgets)
    if wanted is not None:
        solution = solve(units, budgets, Settings(effort=Effort(1, 0, 500, 1)))
        assert solution.optimal
        assert close(solution.loss, wanted[0])


def scattered(units: int, points: int) -> list[Unit]:
    """Many units with costs and scores that have nothing to do with each other."""
    state = 1
    made = []
    for number in range(units):
        values = []
        for _ in range(points):
            state = state * 6364136223846793005 % 2**64
            values.append(((state >> 40,), 10.0 ** (-9 * ((state >> 20) % 2**20) / 2**20)))
        made.append(unit(f"unit{number:04d}", values))
    return made


def test_what_is_left_pays_for_no_upgrade() -> None:
    units = scattered(200, 30)
    least = sum(min(point.cost[0] for point in entry.points) for entry in units)
    for budget in (least, least + least // 7, 3 * least):
        solution = solve(units, {"bytes": budget})
        assert solution.optimal
        now = solution.points
        upgrades = [
            point.cost[0] - now[entry.name].cost[0]
            for entry in units
            for point in entry.points
            if point.score < now[entry.name].score
        ]
        assert solution.unused["bytes"] < min(upgrades)


@pytest.mark.slow
def test_thousands_of_units_in_any_order() -> None:
    units = scattered(5000, 40)
    budget = {"bytes": 2 * sum(min(point.cost[0] for point in entry.points) for entry in units)}
    solution = solve(units, budget)
    assert solution.optimal
    assert labels(solve(units[::-1], budget).points) == labels(solution.points)


@settings(max_examples=100)
@given(questions(), st.data())
def test_a_start_is_never_worsened(question: Drawn, data: st.DataObject) -> None:
    units, _ = built(question)
    start = {entry.name: data.draw(st.sampled_from(entry.points)) for entry in units}
    dimensions = len(units[0].points[0].cost)
    totals = [sum(point.cost[place] for point in start.values()) for place in range(dimensions)]
    budgets = dict(zip(("bytes", "nanoseconds", "rows"), totals, strict=False))
    solution = solve(units, budgets, Settings(effort=Effort(1, 0, 0, 0)), start)
    assert solution.loss <= sum(max(point.score, 0.0) for point in start.values()) * (1 + 1e-13)


@settings(max_examples=100)
@given(questions(), st.data())
def test_unlimited_dimensions_are_only_reported(question: Drawn, data: st.DataObject) -> None:
    units, _ = built(question)
    budgets: dict[str, int | None] = dict(data.draw(budgets_for(question[0], len(units[0].points[0].cost))))
    budgets[data.draw(st.sampled_from(sorted(budgets)))] = None
    wanted = best(units, budgets)
    if wanted is None:
        with pytest.raises(Infeasible):
            solve(units, budgets)
    else:
        solution = solve(units, budgets)
        assert close(solution.loss, wanted[0])
        assert solution.costs.keys() == budgets.keys()
