"""What a refusal says."""

import pytest

from allocation.cases import unit
from bitbudget.allocation import Infeasible, Rule, Settings, cheapest, solve
from bitbudget.errors import BudgetError

UNITS = [
    unit("head", [((50,), 0.0), ((80,), 0.0)]),
    unit("a", [((2,), 4.0), ((30,), 2.0)]),
    unit("b", [((3,), 9.0), ((4,), 3.0)]),
]


def test_one_budget_names_the_least_and_who_needs_it() -> None:
    with pytest.raises(Infeasible) as caught:
        solve(UNITS, {"bytes": 54})
    error = caught.value
    assert isinstance(error, BudgetError)
    assert error.exit_code == 4
    assert error.reachable == {"bytes": 55}
    assert error.blocking[0] == ("head", 50)
    assert error.proven
    assert "55 bytes" in str(error)
    assert "head (50)" in str(error)


def test_units_held_up_by_rules_come_first() -> None:
    with pytest.raises(Infeasible) as caught:
        solve(UNITS, {"bytes": 60}, Settings(rules=(Rule("a", pin=("choice1",)),)))
    assert caught.value.reachable == {"bytes": 83}
    assert caught.value.blocking[0] == ("a", 28)


def test_budgets_that_exclude_each_other() -> None:
    units = [unit(name, [((1, 9), 1.0), ((9, 1), 1.0)]) for name in "ab"]
    with pytest.raises(Infeasible) as caught:
        solve(units, {"bytes": 9, "nanoseconds": 17})
    error = caught.value
    assert error.reachable == {"bytes": 2, "nanoseconds": 2}
    assert error.jointly == {"bytes": 10, "nanoseconds": 18}
    assert error.proven
    assert "together" in str(error)


def test_a_loss_out_of_reach() -> None:
    with pytest.raises(Infeasible) as caught:
        cheapest(UNITS, 4.5, "bytes", {"bytes": None})
    assert caught.value.reachable["loss"] == 5.0
    assert caught.value.blocking[0] == ("b", 3.0)
    assert cheapest(UNITS, 5.0, "bytes", {"bytes": None}).costs == {"bytes": 84}


def test_what_is_said_to_be_reachable_is() -> None:
    with pytest.raises(Infeasible) as caught:
        solve(UNITS, {"bytes": 1})
    assert solve(UNITS, {"bytes": int(caught.value.reachable["bytes"])}).unused == {"bytes": 0}
