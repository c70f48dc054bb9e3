"""The plan: every layer by its full name with its choice, and all it takes to judge and repeat how it was chosen."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bitbudget.allocation.documents import read_document
from bitbudget.allocation.frontier import Frontier
from bitbudget.allocation.question import DEFAULT, Budgets, Question, Settings
from bitbudget.allocation.solution import Solution
from bitbudget.allocation.tables import ScoreTable
from bitbudget.checkpoint.atomic import write_atomic
from bitbudget.errors import InputError

FORMAT, VERSION = "bitbudget-plan", 1
CORNERS = 200  # of the frontier in a plan; the whole of it has one for every upgrade


@dataclass(frozen=True)
class PlannedUnit:
    """One decision: its layers, costs by dimension, score and standard error."""

    layers: tuple[str, ...]
    costs: Mapping[str, int]
    score: float | None
    se: float | None


@dataclass(frozen=True)
class Curve:
    """Corners (cost, loss) of the best plans over one dimension; `corners_in_all` of them exist, some are left out."""

    dimension: str
    corners: tuple[tuple[int, float], ...]
    corners_in_all: int


@dataclass(frozen=True)
class Plan:
    """layers: layer → choice's text; units: unit → decision. For the other words see `Solution`.

    settings: how it was solved; inputs: hashes of what the scores were measured on; solver: names and versions.
    A plan that nobody solved (`chosen_by_hand`) has no loss, no bound and no frontier.
    """

    layers: Mapping[str, str]
    units: Mapping[str, PlannedUnit]
    budgets: Mapping[str, int | None]
    costs: Mapping[str, int]
    minimized: str
    loss: float | None
    lower_bound: float | None
    gap: float | None
    optimal: bool
    resolution: float | None
    shadow_prices: Mapping[str, float]
    frontier: Curve | None
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    notes: tuple[str, ...]
    solver: Mapping[str, str]

    @classmethod
    def chosen_by_hand(
        cls,
        layers: Mapping[str, str],
        costs: Mapping[str, Mapping[str, int]],
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
    ) -> "Plan":
        """A plan whose choices somebody named, every layer for itself; costs: layer → dimension → cost."""
        dimensions = list(dict.fromkeys(name for own in costs.values() for name in own))
        return cls(
            layers=dict(sorted(layers.items())),
            units={name: PlannedUnit((name,), costs[name], None, None) for name in sorted(layers)},
            budgets=dict.fromkeys(dimensions),
            costs={name: sum(own[name] for own in costs.values()) for name in dimensions},
            minimized="nothing",
            loss=None,
            lower_bound=None,
            gap=None,
            optimal=False,
            resolution=None,
            shadow_prices={},
            frontier=None,
            settings=settings,
            inputs=inputs,
            notes=("chosen by hand, not solved",),
            solver={},
        )

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        content = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        content["units"] = {name: asdict(unit) for name, unit in self.units.items()}
        content["frontier"] = None if self.frontier is None else asdict(self.frontier)
        plain: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, "version": VERSION, **content}))
        return plain

    def save(self, path: Path) -> None:
        """Write the plan as readable JSON."""
        write_atomic(path, (json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n").encode())

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], source: str = "the document") -> "Plan":
        """A plan from JSON values. Raises InputError where they are none."""
        try:
            content = {entry.name: document[entry.name] for entry in fields(cls)}
            content["units"] = {
                name: PlannedUnit(tuple(unit["layers"]), unit["costs"], unit["score"], unit["se"])
                for name, unit in document["units"].items()
            }
            curve = document["frontier"]
            content["frontier"] = None if curve is None else _curve(curve)
            content["notes"] = tuple(document["notes"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"The plan in {source} is damaged ({error!r}). Solve again.") from error
        return cls(**content)

    @classmethod
    def load(cls, path: Path) -> "Plan":
        """Read a plan. Raises InputError for a file that is none, or is damaged."""
        return cls.from_dict(read_document(path, FORMAT, VERSION), str(path))


def plan_of(
    solution: Solution,
    settings: Settings = DEFAULT,
    inputs: Mapping[str, str] | None = None,
    curve: Frontier | None = None,
) -> Plan:
    """A solution as a plan; choices become their text."""
    chosen = {
        layer: str(choice) for point in solution.points.values() for layer, choice in sorted(point.choices.items())
    }
    return Plan(
        layers=chosen,
        units={
            name: PlannedUnit(
                layers=tuple(sorted(point.choices)),
                costs=dict(zip(solution.costs, point.cost, strict=True)),
                score=point.score,
                se=point.se,
            )
            for name, point in solution.points.items()
        },
        budgets=dict(solution.budgets),
        costs=dict(solution.costs),
        minimized=solution.minimized,
        loss=solution.loss,
        lower_bound=solution.lower_bound,
        gap=solution.gap,
        optimal=solution.optimal,
        resolution=solution.resolution,
        shadow_prices=dict(solution.shadow_prices),
        frontier=None if curve is None else Curve(curve.dimension, tuple(curve.thinned(CORNERS)), len(curve.costs)),
        settings=asdict(settings),
        inputs=dict(inputs or {}),
        notes=solution.notes,
        solver=_versions(),
    )


def plan_from_table(table: ScoreTable, budgets: Budgets, settings: Settings = DEFAULT) -> Plan:
    """Solve a saved table for any budget; dimensions without one are reported, not limited.

    Raises:
        Infeasible: no plan fits. InputError: a budget for a dimension that the table lacks, or a damaged table.
    """
    unknown = [name for name in budgets if name not in table.dimensions]
    if unknown:
        raise InputError(f"The table has no dimension {unknown[0]}; it has {', '.join(table.dimensions)}.")
    limits = {name: budgets.get(name) for name in table.dimensions}
    asked = Question(table.units, limits, settings)
    solution = asked.solved()
    limited = [name for name, limit in limits.items() if limit is not None]
    curve = asked.frontier(limited[0]) if len(limited) == 1 else None
    return plan_of(solution, settings, table.inputs, curve)


def _curve(document: Mapping[str, Any]) -> Curve:
    corners = tuple((int(cost), float(loss)) for cost, loss in document["corners"])
    return Curve(document["dimension"], corners, document["corners_in_all"])


def _versions() -> dict[str, str]:
    """What a plan's bytes may depend on."""
    found = {}
    for package in ("bitbudget", "numpy", "scipy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that is not installed
            found[package] = "unknown"
    return found
