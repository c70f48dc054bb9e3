"""Losses of pairs, against trying everything."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocation.cases import Drawn, built, close, plans, questions, unit
from bitbudget.allocation import Infeasible, Interaction, solve, solve_with_interactions
from bitbudget.errors import InputError


@settings(max_examples=80)
@given(questions(), st.data())
def test_the_bound_holds_and_the_plan_is_as_good_as_it_says(drawn: Drawn, data: st.DataObject) -> None:
    units, budgets = built(drawn)
    interactions = []
    for first, second in zip(units, units[1:], strict=False):
        terms = {
            (one.label, two.label): data.draw(st.floats(-0.5, 1.0))
            for one in first.points
            for two in second.points
            if data.draw(st.booleans())
        }
        interactions.append(Interaction(first.name, second.name, terms))
    everything = plans(units, budgets)
    if not everything:
        with pytest.raises(Infeasible):
            solve_with_interactions(units, budgets, interactions)
        return
    true = [
        float(loss)
        + sum(_term(entry, dict(zip((u.name for u in units), chosen, strict=True))) for entry in interactions)
        for loss, _, chosen in everything
    ]
    solution = solve_with_interactions(units, budgets, interactions)
    told = sum(point.score for point in solution.points.values())
    told += sum(_term(entry, solution.points) for entry in interactions)
    assert solution.loss == pytest.approx(told, abs=1e-12)
    assert solution.lower_bound <= min(true) + 1e-12
    assert solution.loss >= min(true) - 1e-12
    assert not solution.optimal or solution.loss == pytest.approx(min(true), abs=1e-11)
    assert all(unused >= 0 for unused in solution.unused.values())


def _term(interaction: Interaction, points) -> float:
    key = points[interaction.first].label, points[interaction.second].label
    return interaction.terms.get(key, 0.0)


def test_a_pair_that_must_not_both_be_low() -> None:
    units = [unit(name, [((2,), 1.0), ((4,), 0.0)]) for name in "abc"]
    interactions = [Interaction("a", "b", {("choice0", "choice0"): 10.0})]
    solution = solve_with_interactions(units, {"bytes": 8}, interactions)
    assert solution.loss == 2.0
    assert solution.optimal
    assert solution.costs == {"bytes": 8}
    assert "choice1" in {solution.points[name].label for name in "ab"}


@settings(max_examples=50)
@given(questions())
def test_without_terms_nothing_changes(drawn: Drawn) -> None:
    units, budgets = built(drawn)
    try:
        plain = solve(units, budgets)
    except Infeasible:
        return
    solution = solve_with_interactions(units, budgets, [])
    assert close(solution.loss, plain.loss) or abs(solution.loss - plain.loss) < 1e-12
    assert solution.optimal


def test_interactions_that_make_no_sense_are_refused() -> None:
    units = [unit(name, [((2,), 1.0)]) for name in "ab"]
    for interaction in (Interaction("a", "z", {}), Interaction("a", "a", {})):
        with pytest.raises(InputError):
            solve_with_interactions(units, {"bytes": 8}, [interaction])


def test_a_bound_that_says_nothing_is_called_so() -> None:
    """A term of -10 between two choices that the budget keeps apart."""
    units = [unit(name, [((4,), 1.0), ((2,), 1.0)]) for name in "ab"]
    interactions = [Interaction("a", "b", {("choice0", "choice0"): -10.0})]
    solution = solve_with_interactions(units, {"bytes": 6}, interactions)
    assert solution.loss == 2.0
    assert solution.lower_bound <= 0.0
    assert not solution.optimal
    assert any("says nothing" in note for note in solution.notes)
