"""Losses of pairs: what two units lose together beyond what each loses alone.

min Σ_u s_u(p_u) + Σ_(u,v) t_uv(p_u, p_v) is solved by re-linearisation: each pair's term is charged to both units at the
other's present point, the separable problem is solved, and the plan is kept where the true loss falls; single moves
follow. The bound stays valid: every term is replaced by α(p) + β(q) ≤ t(p, q), which is separable and never above it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from bitbudget.allocation.question import DEFAULT, Budgets, Question, Settings
from bitbudget.allocation.solution import Solution
from bitbudget.allocation.units import Point, Unit
from bitbudget.errors import InputError

ROUNDS = 20


@dataclass(frozen=True)
class Interaction:
    """terms: (label of the first unit's point, label of the second's) → loss on top of the two; absent ones are 0."""

    first: str
    second: str
    terms: Mapping[tuple[str, str], float]


def solve_with_interactions(
    units: Sequence[Unit],
    budgets: Budgets,
    interactions: Sequence[Interaction],
    settings: Settings = DEFAULT,
) -> Solution:
    """A plan of small loss with pairs counted, within all budgets, and a bound below which none lies.

    `optimal` is claimed where the two meet. Shadow prices are those of the plan's linearisation.

    Raises:
        Infeasible, InputError: as `solve` does; InputError for an interaction between unknown units or points.
    """
    question = Question(units, budgets, settings)
    question.refuse_single_budgets()
    pairs = _Pairs(question, interactions)
    ground = pairs.solved(pairs.below(None))
    best, loss = ground, pairs.loss(ground.points)
    for _ in range(ROUNDS):
        candidate = pairs.moved(pairs.solved(pairs.charged(best.points)))
        if not (new := pairs.loss(candidate.points)) < loss:
            break
        best, loss = candidate, new
    tight = pairs.solved(pairs.below(best.points))
    bound = max(pairs.bound(ground, None), pairs.bound(tight, best.points))
    for other in (ground, tight):  # the plans behind the bounds are plans as well
        candidate = pairs.moved(other)
        if (new := pairs.loss(candidate.points)) < loss:
            best, loss = candidate, new
    return pairs.finished(best, loss, bound)


class _Pairs:
    """Tables of all interactions between the points that are left, and the linear stand-ins for them."""

    def __init__(self, question: Question, interactions: Sequence[Interaction]) -> None:
        self.question = question
        self.place = {unit.name: number for number, unit in enumerate(question.units)}
        self.losses = [np.array(own) for own in question.losses]
        self.labels = [[point.label for point in unit.points] for unit in question.units]
        self.tables = [self._table(interaction) for interaction in interactions]
        self.index = [{id(point): number for number, point in enumerate(unit.points)} for unit in question.units]

    def _table(self, interaction: Interaction) -> tuple[int, int, Float64[ndarray, "first second"]]:
        for name in (interaction.first, interaction.second):
            if name not in self.place:
                raise InputError(f"An interaction names {name}, but there is no such unit.")
        if interaction.first == interaction.second:
            raise InputError(f"An interaction of {interaction.first} with itself belongs into its scores.")
        first, second = self.place[interaction.first], self.place[interaction.second]
        terms = [[interaction.terms.get((one, two), 0.0) for two in self.labels[second]] for one in self.labels[first]]
        table = np.array(terms, dtype=np.float64)
        if not np.isfinite(table).all():
            raise InputError(
                f"The interaction of {interaction.first} and {interaction.second} is not a number throughout."
            )
        return first, second, table

    def _places(self, points: Mapping[str, Point]) -> list[int]:
        return [self.index[number][id(points[unit.name])] for number, unit in enumerate(self.question.units)]

    def loss(self, points: Mapping[str, Point]) -> float:
        """The true loss of a plan."""
        chosen = self._places(points)
        alone = sum(float(own[at]) for own, at in zip(self.losses, chosen, strict=True))
        return alone + sum(float(table[chosen[first], chosen[second]]) for first, second, table in self.tables)

    def charged(self, points: Mapping[str, Point]) -> list[Float64[ndarray, "_"]]:
        """Every unit's losses with its pairs' terms at the others' present points."""
        chosen = self._places(points)
        losses = [own.copy() for own in self.losses]
        for first, second, table in self.tables:
            losses[first] += table[:, chosen[second]]
            losses[second] += table[chosen[first], :]
        return losses

    def below(self, points: Mapping[str, Point] | None) -> list[Float64[ndarray, "_"]]:
        """Losses with α and β instead of every term: halves of the least ones, or tight at a plan's second points."""
        chosen = None if points is None else self._places(points)
        losses = [own.copy() for own in self.losses]
        for first, second, table in self.tables:
            alpha = table.min(axis=1) / 2 if chosen is None else table[:, chosen[second]]
            losses[first] += alpha
            losses[second] += (table - alpha[:, None]).min(axis=0)
        return losses

    def solved(self, losses: list[Float64[ndarray, "_"]]) -> Solution:
        """The separable problem; the solver wants losses from 0 upwards, and a constant per unit changes no plan."""
        return self.question.least_loss([(own - own.min()).tolist() for own in losses], None)

    def bound(self, solution: Solution, points: Mapping[str, Point] | None) -> float:
        """The bound of a solution of `below(points)`, with the constants that `solved` took away."""
        return solution.lower_bound + sum(float(own.min()) for own in self.below(points))

    def moved(self, solution: Solution) -> Solution:
        """The plan after single moves that lower the true loss within the budgets, until none does."""
        points = dict(solution.points)
        improved = True
        while improved:
            improved = False
            for number, unit in enumerate(self.question.units):
                losses = self.charged(points)[number]
                now = self.index[number][id(points[unit.name])]
                for at in np.argsort(losses, kind="stable").tolist():
                    if losses[at] >= losses[now] - 1e-15 * abs(losses[now]):
                        break
                    if self._fits(points, unit, unit.points[at]):
                        points[unit.name], improved = unit.points[at], True
                        break
        return replace(solution, points=points, costs=self.question.totals(points))

    def _fits(self, points: Mapping[str, Point], unit: Unit, point: Point) -> bool:
        totals = self.question.totals({**points, unit.name: point})
        return all(limit is None or totals[name] <= limit for name, limit in self.question.budgets.items())

    def finished(self, best: Solution, loss: float, bound: float) -> Solution:
        tolerance = best.resolution + 1e-12 * abs(loss)
        closed = bound >= loss - tolerance
        note = (
            f"{len(self.tables)} interactions between units are counted; the bound takes each at a separable minorant."
        )
        notes = (*best.notes, note)
        if bound <= 0.0 < loss:
            notes = (
                *notes,
                "The bound says nothing here, since interactions could save more than all scores add up to.",
            )
        lower = loss if closed else min(bound, loss)
        return replace(best, loss=loss, lower_bound=lower, optimal=closed, resolution=tolerance, notes=notes)
