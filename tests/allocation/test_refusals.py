"""Numbers that no answer could be right for are refused, whatever they would have done further in."""

import math
from itertools import permutations
from pathlib import Path

import pytest

from allocation.cases import unit
from bitbudget.allocation import (
    Objective,
    Point,
    ScoreTable,
    Settings,
    Unit,
    cheapest,
    equal_loss_bits,
    frontier,
    mixing_gain,
    solve,
)
from bitbudget.errors import InputError

UNITS = [unit("a", [((2,), 4.0), ((3,), 2.0)]), unit("b", [((2,), 9.0), ((3,), 3.0)])]


@pytest.mark.parametrize("risk", [-1.0, math.nan, math.inf])
def test_risks_that_are_no_number_of_errors(risk: float) -> None:
    with pytest.raises(InputError, match="risk"):
        solve(UNITS, {"bytes": 6}, Settings(Objective(risk=risk)))


def test_losses_that_add_up_to_infinity() -> None:
    huge = [unit(name, [((1,), 1.5e308), ((2,), 1.0)]) for name in ("a", "b")]
    with pytest.raises(InputError, match="add up"):
        solve(huge, {"bytes": 3})


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_losses_to_stay_within_that_are_no_number(loss: float) -> None:
    with pytest.raises(InputError, match="loss to stay within"):
        cheapest(UNITS, loss, "bytes", {"bytes": None})


@pytest.mark.parametrize("wrong", ['"high"', "null", "true", "1e999"])
def test_tables_whose_scores_are_no_numbers(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "scores.json"
    ScoreTable(("bytes",), (unit("a", [((2,), 4.0)]),)).save(path)
    path.write_text(path.read_text().replace("[4.0]", f"[{wrong}]"))
    with pytest.raises(InputError, match="score"):
        ScoreTable.load(path)


def test_tables_with_a_choice_before_the_first(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    ScoreTable(("bytes",), tuple(UNITS)).save(path)
    path.write_text(path.read_text().replace("[[0], [1]]", "[[0], [-1]]"))
    with pytest.raises(InputError, match="damaged"):
        ScoreTable.load(path)


def test_infinite_sensitivities() -> None:
    with pytest.raises(InputError, match="finite"):
        equal_loss_bits([math.inf, 1.0], [4, 4], 4.0)
    with pytest.raises(InputError, match="finite"):
        mixing_gain([math.nan, 1.0], [4, 4])


def test_the_frontier_of_points_alike_but_for_their_score_in_any_order() -> None:
    """Scores below 0 count as 0: which of two such points is named must not depend on the order of the input."""
    points = (Point({"a": "x"}, (1,), -1.0), Point({"a": "x"}, (1,), -2.0), Point({"a": "x"}, (3,), 0.5))
    starts = {frontier([Unit("a", order)], "bytes", {"bytes": None}).start["a"].score for order in permutations(points)}
    assert len(starts) == 1
