"""A question to the solver: checked, turned into integers, its answer turned back and its refusals explained."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral

from bitbudget.allocation.frontier import Frontier, hull_frontier
from bitbudget.allocation.infeasible import Infeasible, blocking_units
from bitbudget.allocation.model import Model, least_loss_model
from bitbudget.allocation.objective import Objective
from bitbudget.allocation.rules import Rule, ruled
from bitbudget.allocation.search import Effort, Found, least_cost, search
from bitbudget.allocation.solution import Solution
from bitbudget.allocation.units import Point, Unit, check_units
from bitbudget.errors import InputError

Budgets = Mapping[str, int | None]
RESERVED = ("loss", "score")


@dataclass(frozen=True)
class Settings:
    """How to solve: objective, rules for single units, and how much work to spend before the gap stays open."""

    objective: Objective = field(default_factory=Objective)
    rules: tuple[Rule, ...] = ()
    effort: Effort = field(default_factory=Effort)


DEFAULT = Settings()


def _whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


class Question:
    """What a caller asks, checked: units by name with the points that their rules leave."""

    def __init__(self, units: Sequence[Unit], budgets: Budgets, settings: Settings) -> None:
        if not units or not budgets:
            raise InputError("There is nothing to solve: give at least one unit, and name every cost in the budgets.")
        for name in RESERVED:
            if name in budgets:
                raise InputError(f"A cost cannot be called {name}: the word stands for what the solver minimises.")
        for name, limit in budgets.items():
            if not (limit is None or _whole(limit)):
                raise InputError(f"The budget of {name} is {limit!r}; budgets are whole numbers, or None for no limit.")
        check_units(units, len(budgets))
        if not 0.0 <= settings.objective.risk < math.inf:
            raise InputError(
                f"The risk is {settings.objective.risk}; it is a number of standard errors from 0 upwards."
            )
        self.settings = settings
        self.budgets = dict(budgets)
        self.unruled = tuple(sorted(units, key=lambda unit: unit.name))
        self.units = ruled(self.unruled, settings.rules, list(budgets))
        self.limited = {place: limit for place, limit in enumerate(budgets.values()) if limit is not None}
        self.names = list(budgets)

    def place(self, dimension: str) -> int:
        """Which of the costs a dimension is."""
        if dimension not in self.names:
            raise InputError(f"There is no dimension {dimension}; the budgets name {', '.join(self.names)}.")
        return self.names.index(dimension)

    @cached_property
    def losses(self) -> list[list[float]]:
        """What is minimised, for every point of every unit."""
        losses = [self.settings.objective.losses(unit) for unit in self.units]
        if not math.isfinite(sum(max(own) for own in losses)):
            raise InputError(
                f"The losses of {len(losses)} units, {max(map(max, losses)):.3g} at most, add up to more than a number can hold. "
                "Scale the scores down, or ask for less risk."
            )
        return losses

    def frontier(self, dimension: str) -> Frontier:
        """The least loss over the cost in one dimension, whatever the budgets."""
        return hull_frontier(self.units, self.losses, dimension, self.place(dimension))

    def solved(self, start: Mapping[str, Point] | None = None) -> Solution:
        """The plan of least loss."""
        self.refuse_single_budgets()
        return self.least_loss(self.losses, start)

    def least_loss(self, losses: Sequence[Sequence[float]], start: Mapping[str, Point] | None) -> Solution:
        """The plan of least loss for given losses, which must not be negative."""
        built = least_loss_model(self.units, losses, list(self.limited), list(self.limited.values()))
        starts = [] if start is None else [built.rows_of(start)]
        found = search(built.problem, self.settings.effort, built.tie, starts, built.relaxed)
        if found is None:
            raise self.jointly_infeasible(built)
        return self.solution(built, found, "loss")

    def reachable(self) -> dict[str, int | float]:
        """The least total of every limited dimension for itself."""
        return {
            self.names[place]: sum(min(point.cost[place] for point in unit.points) for unit in self.units)
            for place in self.limited
        }

    def refuse_single_budgets(self) -> None:
        reachable = self.reachable()
        for place, limit in self.limited.items():
            if reachable[self.names[place]] > limit:
                raise self._infeasible(reachable, place)

    def _infeasible(
        self,
        reachable: Mapping[str, int | float],
        place: int,
        jointly: Mapping[str, int] | None = None,
        proven: bool = True,
    ) -> Infeasible:
        limits = {self.names[other]: limit for other, limit in self.limited.items()}
        blocking = blocking_units(self.units, self.unruled, place)
        return Infeasible(limits, reachable, self.names[place], blocking, jointly, proven)

    def jointly_infeasible(self, built: Model) -> Infeasible:
        """Budgets that can each be met alone: with the least of every dimension within the others."""
        jointly, proven = {}, False
        for number, place in enumerate(self.limited):
            found = least_cost(built.problem, number, self.settings.effort, built.tie)
            if found is not None:
                points = built.chosen(found.rows).values()
                jointly[self.names[place]] = sum(point.cost[place] for point in points)
                proven = proven or found.bound > int(built.problem.limit[number])
        return self._infeasible(self.reachable(), list(self.limited)[-1], jointly, proven)

    def loss_out_of_reach(self, loss: float, losses: Sequence[Sequence[float]]) -> Infeasible:
        least = {unit.name: min(own) for unit, own in zip(self.units, losses, strict=True)}
        ranked = sorted(least.items(), key=lambda entry: (-entry[1], entry[0]))
        limits = {self.names[place]: limit for place, limit in self.limited.items()}
        reachable = {"loss": sum(least.values()), **self.reachable()}
        return Infeasible({"loss": loss, **limits}, reachable, "loss", ranked)

    def totals(self, points: Mapping[str, Point]) -> dict[str, int]:
        """Exact costs of a plan in every dimension."""
        return {name: sum(point.cost[place] for point in points.values()) for place, name in enumerate(self.names)}

    def solution(self, built: Model, found: Found, minimized: str) -> Solution:
        points = built.chosen(found.rows)
        costs = self.totals(points)
        over = [name for name, limit in self.budgets.items() if limit is not None and costs[name] > limit]
        assert not over, f"a plan that the solver counted within its budgets exceeds {over}"
        loss = built.loss(found.rows)
        value = loss if minimized == "loss" else float(costs[minimized])
        missing = (found.value - found.bound) * built.objective_unit
        rounding = len(self.units) * (built.objective_unit if minimized == "loss" else built.cost_units[0])
        limited = [self.names[place] for place in self.limited]
        dimensions = limited if minimized == "loss" else ["loss", *limited]
        prices = zip(dimensions, found.multipliers, built.cost_units, strict=True)
        return Solution(
            points=points,
            costs=costs,
            budgets=self.budgets,
            loss=loss,
            minimized=minimized,
            lower_bound=value if found.optimal else max(value - missing, 0.0),
            optimal=found.optimal,
            resolution=rounding,
            shadow_prices={name: price * built.objective_unit / unit for name, price, unit in prices},
            notes=self.settings.objective.notes(self.units),
            work=found.work,
        )
