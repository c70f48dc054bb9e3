"""A budget as the solver sees it: which choices are offered, what they may cost, and the plan of least predicted loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bitbudget.allocation import Infeasible, Objective, Plan, Point, ScoreTable, Unit, plan_from_table
from bitbudget.allocation import Settings as SolverSettings
from bitbudget.errors import BudgetError
from bitbudget.methods.recipe import Order
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.budgets import DIMENSIONS, DISK, Budget, described, exceeded, limits
from bitbudget.pipeline.least import refuse_too_small
from bitbudget.pipeline.offers import Offer, Prices, chosen, disk_constant
from bitbudget.pipeline.output import OutputPlan, PlannedLayer, disk_bytes_of, shards_of

DISK_ROUNDS = 12  # of moving the limit of the disk; two or three are enough nearly always


@dataclass(frozen=True)
class Question:
    """A budget as the solver sees it. limit: of every dimension; beside_weights: bytes that running takes besides tensors; order:
    what to do with scores that fall with cost (see `Recipe`).
    """

    budget: Budget
    limit: dict[str, int | None]
    constant_disk: int
    beside_weights: int
    max_shard_bytes: int
    prices: Prices
    order: Order = "keep"

    @property
    def solver(self) -> SolverSettings:
        return SolverSettings(Objective(order=self.order))

    def solver_limit(self, table: ScoreTable) -> dict[str, int | None]:
        """Of a table's points. That of the disk is an estimate, so never below the least there is."""
        disk = self.limit[DISK]
        if disk is None:
            return self.limit
        place = table.dimensions.index(DISK)
        least = sum(min(point.cost[place] for point in unit.points) for unit in table.units)
        return {**self.limit, DISK: max(least, disk - self.constant_disk)}


def question(
    source: SourceModel,
    budget: Budget,
    beside_weights: int,
    max_shard_bytes: int,
    order: Order = "keep",
    packed: bool = True,
) -> Question:
    """packed: as of `Prices`. Raises InputError for a budget that is no number."""
    budget.check()
    limit = limits(budget, source, beside_weights)
    constant, prices = disk_constant(source, max_shard_bytes), Prices.of(source, packed)
    return Question(budget, limit, constant, beside_weights, max_shard_bytes, prices, order)


def offered(every: Sequence[Offer], budget: Budget) -> tuple[Offer, ...]:
    """With a budget of code bits embedding and head stay at 16 bits, as papers count."""
    if budget.code_bits is None:
        return tuple(every)
    return tuple(
        offer if offer.layer.kind == "linear" else Offer(offer.layer, offer.planned[:1]) for offer in every
    )


def restricted(table: ScoreTable, every: Sequence[Offer]) -> ScoreTable:
    """Only the points that are offered."""
    allowed = {(offer.layer.name, str(planned.choice)) for offer in every for planned in offer.planned}
    units = tuple(
        replace(unit, points=tuple(point for point in unit.points if (unit.name, point.label) in allowed))
        for unit in table.units
    )
    return replace(table, units=units)


def solved(table: ScoreTable, asked: Question, source: SourceModel, every: Sequence[Offer]) -> Plan:
    """The plan of least predicted loss. What the files really take is known with the plan only (lengths of names and numbers in
    headers, an index), so a limit of the disk is moved by what was over- or underestimated until nothing changes.

    Raises:
        BudgetError: no plan fits.
    """
    limit, most = asked.solver_limit(table), asked.limit[DISK]
    if most is None:
        return _solved(table, limit, asked)
    best: Plan | None = None
    tried: set[int | None] = set()
    while limit[DISK] not in tried and len(tried) < DISK_ROUNDS:
        tried.add(limit[DISK])
        try:
            plan = _solved(table, limit, asked)
        except BudgetError:
            if best is None:
                raise
            break
        spare = most - disk_bytes_of(source, chosen(every, plan.layers), asked.max_shard_bytes)
        if spare >= 0 and (best is None or (plan.loss or 0.0) <= (best.loss or 0.0)):
            best = replace(plan, budgets={**plan.budgets, DISK: plan.costs[DISK] + spare})
        limit = {**limit, DISK: (plan.costs[DISK] if spare >= 0 else (limit[DISK] or 0)) + spare}
    if best is None:
        raise BudgetError(f"{described(asked.budget)} cannot be met: the files' headers take the last bytes. Raise it.")
    return best


def _solved(table: ScoreTable, limit: Mapping[str, int | None], asked: Question) -> Plan:
    try:
        return plan_from_table(table, limit, asked.solver)
    except Infeasible as error:
        raise BudgetError(f"{described(asked.budget)} cannot be met. {error}") from error


def refuse_infeasible(source: SourceModel, every: Sequence[Offer], asked: Question) -> None:
    """Before any work: raise BudgetError where no plan can meet the budget."""
    refuse_too_small(source, every, asked.budget, asked.beside_weights, asked.max_shard_bytes, asked.prices)
    units = []
    for offer in every:
        name = offer.layer.name
        points = (Point({name: str(planned.choice)}, asked.prices.costs(planned), 0.0) for planned in offer.planned)
        units.append(Unit(name, tuple(points)))
    table = ScoreTable(DIMENSIONS, tuple(units), {})
    _solved(table, asked.solver_limit(table), asked)


def richest(source: SourceModel, every: Sequence[Offer], asked: Question) -> tuple[PlannedLayer, ...] | None:
    """Every layer by its largest choice, if the budget has room for that: then there is nothing to choose."""
    costs = asked.prices.costs
    layers = tuple(max(offer.planned, key=costs) for offer in every)
    sums = (sum(amounts) for amounts in zip(*map(costs, layers), strict=True))
    totals = dict(zip(DIMENSIONS, sums, strict=True))
    if asked.limit[DISK] is not None:  # files are known to the byte
        totals[DISK] = disk_bytes_of(source, layers, asked.max_shard_bytes)
    return None if exceeded(asked.limit, totals) else layers


def output_of(
    source: SourceModel, layers: Sequence[PlannedLayer], max_shard_bytes: int, settings: dict[str, Any]
) -> OutputPlan:
    """What these layers make of the model, to the byte."""
    return OutputPlan(
        tuple(layers), source.passthrough, shards_of(source, layers, max_shard_bytes), settings
    )
