"""Pins, vetoes, floors and ceilings; risk, order and signs of scores."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocation.cases import Drawn, best, built, close, questions, unit
from bitbudget.allocation import Infeasible, Objective, Point, Rule, Settings, Unit, solve
from bitbudget.errors import InputError

UNITS = [
    unit("a", [((2,), 4.0), ((3,), 2.0), ((4,), 1.0)]),
    unit("b", [((2,), 9.0), ((3,), 3.0), ((4,), 0.5)]),
]


def labels_under(*rules: Rule, budget: int = 7) -> list[str]:
    points = solve(UNITS, {"bytes": budget}, Settings(rules=rules)).points
    return [points[name].label for name in ("a", "b")]


def test_without_rules_the_more_sensitive_unit_gets_more() -> None:
    assert labels_under() == ["choice1", "choice2"]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Rule("a", pin=("choice0",)), ["choice0", "choice2"]),
        (Rule("a", pin=("choice2", "choice0")), ["choice2", "choice1"]),
        (Rule("b", veto=("choice2",)), ["choice2", "choice1"]),
        (Rule("a", floor={"bytes": 4}), ["choice2", "choice1"]),
        (Rule("b", ceiling={"bytes": 2}), ["choice2", "choice0"]),
        (Rule("a", ceiling={"score": 1.5}), ["choice2", "choice1"]),
    ],
)
def test_rules_hold(rule: Rule, expected: list[str]) -> None:
    assert labels_under(rule) == expected


def test_a_rule_for_a_layer_looks_at_that_layer_only() -> None:
    tied = Unit("qk", (Point({"q": "int3", "k": "int4"}, (3,), 2.0), Point({"q": "int4", "k": "int3"}, (3,), 1.0)))
    solution = solve([tied], {"bytes": 9}, Settings(rules=(Rule("k", pin=("int4",)),)))
    assert solution.points["qk"].choices["q"] == "int3"


@pytest.mark.parametrize(
    "rule",
    [
        Rule("nobody", pin=("choice0",)),
        Rule("a", pin=("choice9",)),
        Rule("a", floor={"litres": 2}),
        Rule("a", pin=("choice0",), veto=("choice0",)),
        Rule("a", floor={"bytes": 5}),
    ],
)
def test_rules_that_make_no_sense_are_refused(rule: Rule) -> None:
    with pytest.raises(InputError, match=rule.name):
        labels_under(rule)


@settings(max_examples=100)
@given(questions(), st.data())
def test_rules_are_the_same_as_fewer_points(drawn: Drawn, data: st.DataObject) -> None:
    units, budgets = built(drawn)
    ruled, rules = [], []
    for entry in units:
        kept = sorted(data.draw(st.sets(st.sampled_from(range(len(entry.points))), min_size=1)))
        ruled.append(Unit(entry.name, tuple(entry.points[place] for place in kept)))
        texts = {entry.points[place].label for place in range(len(entry.points))}
        pinned = {entry.points[place].label for place in kept}
        by_veto = data.draw(st.booleans())
        rules.append(Rule(entry.name, veto=tuple(texts - pinned)) if by_veto else Rule(entry.name, pin=tuple(pinned)))
    wanted = best(ruled, budgets)
    if wanted is None:
        with pytest.raises(Infeasible):
            solve(units, budgets, Settings(rules=tuple(rules)))
    else:
        assert close(solve(units, budgets, Settings(rules=tuple(rules))).loss, wanted[0])


def test_a_difference_below_the_noise_moves_no_bits() -> None:
    sure = Point({"a": "int3"}, (3,), 1.0, 0.0)
    noisy = Point({"a": "int4"}, (4,), 0.9, 0.2)
    question = [Unit("a", (sure, noisy))]
    assert solve(question, {"bytes": 4}).points["a"] is noisy
    careful = solve(question, {"bytes": 4}, Settings(Objective(risk=2.0)))
    assert careful.points["a"] is sure
    assert careful.loss == 1.0


def test_negative_scores_count_as_zero_and_are_noted() -> None:
    solution = solve([unit("a", [((1,), -3.0), ((2,), -5.0)])], {"bytes": 9})
    assert solution.loss == 0.0
    assert solution.costs == {"bytes": 1}
    assert "2 points have a negative score" in solution.notes[0]


def test_scores_out_of_order_are_kept_or_raised_and_noted() -> None:
    """A signed estimator found 2 bits better than 4: taken as it is, 2 bits win; raised, they gain nothing."""
    question = [unit("a", [((2,), 1.0), ((3,), 5.0), ((4,), 2.0)])]
    kept = solve(question, {"bytes": 4})
    assert kept.costs == {"bytes": 2}
    assert "1 of 1 units" in kept.notes[0]
    raised = solve(question, {"bytes": 4}, Settings(Objective(order="raise")))
    assert raised.costs == {"bytes": 4}
    assert raised.loss == 2.0
    assert "raised" in raised.notes[0]


@settings(max_examples=100)
@given(questions())
def test_raised_losses_never_rise_with_cost(drawn: Drawn) -> None:
    for entry in built(drawn)[0]:
        losses = Objective(order="raise").losses(entry)
        for point, loss in zip(entry.points, losses, strict=True):
            assert loss >= point.score
            for other, other_loss in zip(entry.points, losses, strict=True):
                if all(one <= two for one, two in zip(point.cost, other.cost, strict=True)):
                    assert loss >= other_loss


def test_units_no_solver_could_use_are_refused() -> None:
    good = unit("a", [((1,), 1.0)])
    for units in (
        [],
        [good, good],
        [Unit("a", ())],
        [good, Unit("b", (Point({"a": "x"}, (1,), 1.0),))],
        [Unit("a", (Point({"a": "x"}, (1,), 1.0), Point({"b": "x"}, (1,), 1.0)))],
        [Unit("a", (Point({"a": "x"}, (1, 2), 1.0),))],
        [Unit("a", (Point({"a": "x"}, (-1,), 1.0),))],
        [Unit("a", (Point({"a": "x"}, (True,), 1.0),))],
        [Unit("a", (Point({"a": "x"}, (1,), float("nan")),))],
        [Unit("a", (Point({"a": "x"}, (1,), 1.0, -1.0),))],
    ):
        with pytest.raises(InputError):
            solve(units, {"bytes": 9})
    with pytest.raises(InputError):
        solve([good], {})
    with pytest.raises(InputError):
        solve([good], {"loss": 3})


def test_costs_of_any_size_stay_exact() -> None:
    huge = 10**30
    question = [unit(name, [((huge,), 2.0), ((huge + 3,), 1.0)]) for name in "ab"]
    solution = solve(question, {"bytes": 2 * huge + 3})
    assert solution.costs == {"bytes": 2 * huge + 3}
    assert Fraction(solution.loss) == 3
