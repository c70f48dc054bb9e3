"""Decide: from a budget to the layers that will be written. Scores are measured until two halves of them agree, the solver picks,
and the guard compares the plan with its rivals on the acceptance text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from bitbudget.allocation import Plan, ScoreTable, solve
from bitbudget.allocation.plan import PlannedUnit
from bitbudget.pipeline.budgets import DIMENSIONS, DISK, MEMORY
from bitbudget.pipeline.effort import WINDOW
from bitbudget.pipeline.guard import Candidate, Judged, best
from bitbudget.pipeline.judging import judged, scaled_again
from bitbudget.pipeline.offers import Offer, chosen
from bitbudget.pipeline.output import PlannedLayer, disk_bytes_of
from bitbudget.pipeline.planning import Planner
from bitbudget.pipeline.prepare import Preparation
from bitbudget.pipeline.rivals import Rival, Rivals
from bitbudget.pipeline.solving import Question, offered, refuse_infeasible, restricted, richest, solved
from bitbudget.pipeline.table import Measured
from bitbudget.pipeline.texts import Cut, sample
from bitbudget.transforms.fold import Fold

AGREEMENT = 0.02  # what a half's plan may lose more, by the other half's scores, than that half's own
PLAN, AGAIN, UNSCALED = "plan", "plan, scales searched again at its widths", "plan, without scales"
SCALES = {PLAN: "first", AGAIN: "again", UNSCALED: "none"}


@dataclass(frozen=True)
class Decided:
    """What will be written: the plan as recorded, its layers, and how their weights are prepared. guard: what it compared."""

    plan: Plan
    layers: tuple[PlannedLayer, ...]
    preparation: Preparation
    guard: dict[str, Any] | None
    table: ScoreTable | None = None


def decide(planner: Planner, asked: Question) -> Decided:
    """The best plan that meets a budget.

    Raises:
        BudgetError: no plan meets it; nothing was measured.
    """
    every = offered(planner.offers, asked.budget)
    refuse_infeasible(planner.source, every, asked)
    rich = richest(planner.source, every, asked)
    if rich is not None:
        return _without_choice(planner, asked, rich)
    measured, table, plan = measure(planner, asked, every)
    rivals = Rivals(every, planner.settings.recipe, table, asked, planner.source)
    return _guarded(planner, asked, (measured, table, plan), rivals)


def measure(planner: Planner, asked: Question, every: Sequence[Offer]) -> tuple[Measured, ScoreTable, Plan]:
    """Scores from as many sequences as it takes, and the plan by them."""
    effort = planner.settings.effort
    count = effort.first
    while True:
        measured = planner.measured(count)
        if measured.sequences < count or count >= effort.most or agree(planner, measured, asked, every):
            break
        count = min(2 * count, effort.most)
    table = restricted(measured.table(asked.prices, planner.offers, planner.hashes()), every)
    return measured, table, solved(table, asked, planner.source, every)


def agree(planner: Planner, measured: Measured, asked: Question, every: Sequence[Offer]) -> bool:
    """Whether each half's plan, by the other half's scores, loses little more than that half's own plan."""
    halves = [
        restricted(measured.table(asked.prices, planner.offers, {}, slice(first, None, 2)), every)
        for first in (0, 1)
    ]
    plans = [solve(half.units, asked.solver_limit(half), asked.solver) for half in halves]
    for own, other in ((0, 1), (1, 0)):
        scores = {
            (unit.name, point.label): loss
            for unit in halves[other].units
            for point, loss in zip(unit.points, asked.solver.objective.losses(unit), strict=True)
        }
        foreign = sum(scores[name, point.label] for name, point in plans[own].points.items())
        if foreign > (1 + AGREEMENT) * plans[other].loss:
            return False
    return True


def _without_choice(planner: Planner, asked: Question, layers: tuple[PlannedLayer, ...]) -> Decided:
    """The budget has room for the largest choice of every layer: nothing is measured."""
    costs = asked.prices.costs
    plan = Plan.chosen_by_hand(
        layers={planned.layer.name: str(planned.choice) for planned in layers},
        costs={planned.layer.name: dict(zip(DIMENSIONS, costs(planned), strict=True)) for planned in layers},
        settings=settings_of(planner, asked, None),
        inputs=planner.hashes(),
    )
    note = "the budget has room for the largest choice of every layer, so nothing was calibrated"
    limit = asked.limit
    if (most := limit[DISK]) is not None:  # of the layers alone, as their costs are
        spare = most - disk_bytes_of(planner.source, layers, asked.max_shard_bytes)
        limit = {**limit, DISK: plan.costs[DISK] + spare}
    return Decided(replace(plan, budgets=limit, notes=(note,)), layers, Preparation(), None)


def settings_of(planner: Planner, asked: Question, sequences: int | None) -> dict[str, Any]:
    """What reproduces the run, besides its inputs."""
    recipe, effort = planner.settings.recipe, planner.settings.effort
    return {
        "method": recipe.method,
        "recipe": asdict(recipe),
        "effort": asdict(effort),
        "budget": asked.budget.to_dict(),
        "sequences": sequences,
        "window": WINDOW,
        "max_shard_bytes": asked.max_shard_bytes,
    }


def _guarded(
    planner: Planner, asked: Question, found: tuple[Measured, ScoreTable, Plan], rivals: Rivals
) -> Decided:
    measured, table, plan = found
    effort, source = planner.settings.effort, planner.source
    text = sample(
        planner.text, planner.parts.acceptance, planner.tokenizer, source, Cut(WINDOW, tokens=effort.guard_tokens)
    )
    plans: dict[str, Mapping[str, str]] = {PLAN: plan.layers}
    calibration = planner.calibration()
    first = Preparation(calibration, calibration.fold)
    candidates = [Candidate(PLAN, chosen(planner.offers, plan.layers), first, plan.loss)]
    if planner.settings.recipe.scaling:
        layers = candidates[0].layers
        # A smaller error at the output of a module is not always a smaller loss: identity is a candidate too.
        candidates.append(Candidate(UNSCALED, layers, Preparation(calibration, Fold.none()), None))
        if effort.again:
            candidates.append(Candidate(AGAIN, layers, Preparation(calibration, scaled_again(planner, layers)), None))
        plans |= dict.fromkeys((UNSCALED, AGAIN), plan.layers)
    for rival in _distinct(plan, rivals.uniform(), rivals.hand()):
        candidates.append(Candidate(rival.name, chosen(planner.offers, rival.layers), first, rival.predicted))
        plans[rival.name] = rival.layers
    held = {one.name: sum(asked.prices.cost(planned, MEMORY) for planned in one.layers) for one in candidates}
    found_by_guard = judged(planner, candidates, text)
    winner = best(found_by_guard)
    taken = next(candidate for candidate in candidates if candidate.name == winner.name)
    guard = {
        "text": text.to_dict() | {"name": planner.text.name},
        "tokens": text.tokens,
        "documents": len({sequence.document for sequence in text.sequences}),
        "winner": winner.name,
        "candidates": [one.to_dict() | {MEMORY: held[one.name]} for one in found_by_guard],
    }
    settings = settings_of(planner, asked, measured.sequences) | {
        "scales": SCALES.get(winner.name, SCALES[PLAN]),
        "guard": winner.name,
    }
    decided = _of_winner(plan, table, plans[winner.name], found_by_guard, winner)
    return Decided(replace(decided, settings=settings), taken.layers, taken.preparation, guard, table)


def _distinct(plan: Plan, *rivals: Rival | None) -> list[Rival]:
    found: list[Rival] = []
    for rival in rivals:
        if rival is not None and rival.layers not in [plan.layers, *(other.layers for other in found)]:
            found.append(rival)
    return found


def _of_winner(
    plan: Plan, table: ScoreTable, layers: Mapping[str, str], judged: Sequence[Judged], winner: Judged
) -> Plan:
    """The plan itself, or the rival's layers in its place with a note."""
    if layers == plan.layers:
        return plan
    points = {(unit.name, point.label): point for unit in table.units for point in unit.points}
    taken = {name: points[name, text] for name, text in layers.items()}
    note = (
        f"the guard took {winner.name}: KL {winner.kl:.6g} against the solved plan's {judged[0].kl:.6g} nats per token on the "
        "acceptance text"
    )
    return replace(
        plan,
        layers=dict(sorted(layers.items())),
        units={
            name: PlannedUnit((name,), dict(zip(table.dimensions, point.cost, strict=True)), point.score, point.se)
            for name, point in sorted(taken.items())
        },
        costs={
            name: sum(point.cost[place] for point in taken.values()) for place, name in enumerate(table.dimensions)
        },
        loss=winner.predicted,
        optimal=False,
        gap=None,
        notes=(*plan.notes, note),
    )
