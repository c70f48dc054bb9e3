"""The answer: a point for every unit, and how good it is at the least."""

from collections.abc import Mapping
from dataclasses import dataclass

from bitbudget.allocation.search import Work
from bitbudget.allocation.units import Point

READABLE = {"bytes": ("MiB", 2**20), "nanoseconds": ("ms", 10**6)}


@dataclass(frozen=True)
class Solution:
    """points: unit → point. costs: dimension → exact total; budgets: those given, None where there was no limit.

    loss: Σ of score + risk · se, negative scores as 0. minimized: "loss", or the dimension whose cost was minimised;
    lower_bound: no plan within the budgets has less of it, up to `resolution` of the loss, which is the most that rounding
    of all losses together makes. optimal: the bound reaches the plan's own value in integers.
    shadow_prices: dimension → how much of what was minimised one more unit of its budget would save, at the relaxation's
    optimum.
    """

    points: Mapping[str, Point]
    costs: Mapping[str, int]
    budgets: Mapping[str, int | None]
    loss: float
    minimized: str
    lower_bound: float
    optimal: bool
    resolution: float
    shadow_prices: Mapping[str, float]
    notes: tuple[str, ...]
    work: Work

    @property
    def value(self) -> float:
        """What was minimised."""
        return self.loss if self.minimized == "loss" else self.costs[self.minimized]

    @property
    def gap(self) -> float:
        """(value − lower bound) / value: what another plan could save at most, as a share."""
        return 0.0 if self.value <= self.lower_bound else (self.value - self.lower_bound) / self.value

    @property
    def unused(self) -> dict[str, int]:
        """What the plan leaves of every limited budget."""
        return {name: limit - self.costs[name] for name, limit in self.budgets.items() if limit is not None}


def readable_prices(shadow_prices: Mapping[str, float], minimized: str) -> dict[str, float]:
    """Shadow prices per MiB and per millisecond where the dimension is bytes or nanoseconds, else per unit."""
    named = {name: READABLE.get(name, (name, 1)) for name in shadow_prices}
    return {f"{minimized} per {named[name][0]}": price * named[name][1] for name, price in shadow_prices.items()}
