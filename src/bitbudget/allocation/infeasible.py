"""Budgets that no plan meets, and what stands in the way."""

from collections.abc import Mapping, Sequence

from bitbudget.allocation.units import Unit
from bitbudget.errors import BudgetError

SHOWN = 5


class Infeasible(BudgetError):
    """No plan lies within the budgets.

    budgets: as asked. reachable: the least total of every dimension for itself. jointly: where each is reachable alone, the
    least total of the last dimension within the others, else empty. blocking: units whose rules keep them from their
    cheapest point, with what that adds, then the units that cost the most at their cheapest; in dimension `dimension`.
    proven: False where the search ended at its limits without a plan.
    """

    def __init__(
        self,
        budgets: Mapping[str, int | float],
        reachable: Mapping[str, int | float],
        dimension: str,
        blocking: Sequence[tuple[str, int | float]],
        jointly: Mapping[str, int] | None = None,
        proven: bool = True,
    ) -> None:
        self.budgets = dict(budgets)
        self.reachable = dict(reachable)
        self.dimension = dimension
        self.blocking = tuple(blocking)
        self.jointly = dict(jointly or {})
        self.proven = proven
        super().__init__(self._text())

    def _text(self) -> str:
        asked, least = _listed(self.budgets), _listed(self.reachable)
        units = ", ".join(f"{name} ({_number(amount)})" for name, amount in self.blocking[:SHOWN])
        weighs = f"What weighs most in {self.dimension}: {units}."
        if any(self.reachable[name] > limit for name, limit in self.budgets.items()):
            return (
                f"No plan fits the budget of {asked}: the least that can be reached is {least}. {weighs} Raise the budget, "
                "loosen pins, vetoes and floors, or offer these units cheaper choices."
            )
        certain = "is" if self.proven else "that was found is"
        within = f" Within the others the least {certain} {_listed(self.jointly)}." if self.jointly else ""
        return (
            f"No plan fits the budgets of {asked} together, though each can be met alone (least: {least}).{within} {weighs} "
            "Raise one of the budgets, or offer choices that are cheap in all of them."
        )


def _listed(amounts: Mapping[str, int | float]) -> str:
    return ", ".join(f"{_number(amount)} {name}" for name, amount in amounts.items())


def _number(amount: int | float) -> str:
    return f"{amount:,}" if isinstance(amount, int) else f"{amount:.6g}"


def blocking_units(units: Sequence[Unit], unruled: Sequence[Unit], place: int) -> list[tuple[str, int | float]]:
    """Units with what their rules add to their least cost in a dimension, largest first; then all by their least cost."""
    free = {unit.name: min(point.cost[place] for point in unit.points) for unit in unruled}
    least = {unit.name: min(point.cost[place] for point in unit.points) for unit in units}
    added: list[tuple[str, int | float]] = [
        (name, cost - free[name]) for name, cost in least.items() if cost > free[name]
    ]
    named = {name for name, _ in added}
    rest: list[tuple[str, int | float]] = [(name, cost) for name, cost in least.items() if name not in named]
    return [*sorted(added, key=_largest_first), *sorted(rest, key=_largest_first)]


def _largest_first(entry: tuple[str, int | float]) -> tuple[int | float, str]:
    return -entry[1], entry[0]
