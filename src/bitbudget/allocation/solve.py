"""The smallest loss within budgets, the smallest cost within a loss, and the smallest loss for every budget."""

import math
from collections.abc import Mapping, Sequence

from bitbudget.allocation.frontier import Frontier
from bitbudget.allocation.model import least_cost_model
from bitbudget.allocation.question import DEFAULT, Budgets, Question, Settings
from bitbudget.allocation.search import search
from bitbudget.allocation.solution import Solution
from bitbudget.allocation.units import Point, Unit
from bitbudget.errors import InputError


def solve(
    units: Sequence[Unit],
    budgets: Budgets,
    settings: Settings = DEFAULT,
    start: Mapping[str, Point] | None = None,
) -> Solution:
    """The plan of least loss within all budgets; among equal ones that of least costs, then the one that a hash of unit
    names and choices puts first. The order of the input changes nothing.

    budgets: a limit, or None, for every dimension of the points' costs, in their order.
    start: a plan to begin from, unit → point; where it fits, the answer loses no more.

    Raises:
        Infeasible: no plan fits; it says what is within reach.
        InputError: units, budgets or rules that make no sense.
    """
    return Question(units, budgets, settings).solved(start)


def frontier(units: Sequence[Unit], dimension: str, budgets: Budgets, settings: Settings = DEFAULT) -> Frontier:
    """All corners of the least loss over the cost in one dimension, and the order of upgrades, whatever the budgets.

    budgets: only their names are looked at.
    """
    return Question(units, dict.fromkeys(budgets), settings).frontier(dimension)


def cheapest(
    units: Sequence[Unit], loss: float, dimension: str, budgets: Budgets, settings: Settings = DEFAULT
) -> Solution:
    """The plan of least cost in one dimension whose loss is at most `loss`, within the budgets of the other dimensions.

    budgets: as for `solve`; that of `dimension` is not looked at. The loss holds up to the solution's resolution.

    Raises:
        Infeasible: no plan loses as little.
        InputError: units, budgets or rules that make no sense.
    """
    if not math.isfinite(loss):
        raise InputError(f"The loss to stay within is {loss}; it has to be a number.")
    lifted = {name: None if name == dimension else limit for name, limit in budgets.items()}
    asked = Question(units, lifted, settings)
    place = asked.place(dimension)
    asked.refuse_single_budgets()
    losses = asked.losses
    built = least_cost_model(asked.units, losses, place, loss, asked.limited)
    found = None if built is None else search(built.problem, settings.effort, built.tie)
    if built is None or found is None:
        raise asked.loss_out_of_reach(loss, losses)
    return asked.solution(built, found, dimension)
