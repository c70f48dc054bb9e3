"""What the solver decides on: units, and the points each may take."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product as combinations
from numbers import Real
from typing import Any

from bitbudget.allocation.dominance import undominated
from bitbudget.errors import InputError


@dataclass(frozen=True)
class Point:
    """One way to store the layers of a unit.

    choices: layer → choice; the solver reads nothing of a choice but its text, str(choice).
    cost: one Python int per dimension (bytes, nanoseconds, 8-bit rows …), never negative.
    score: predicted loss in nats per token; se: its standard error.
    """

    choices: Mapping[str, Any]
    cost: tuple[int, ...]
    score: float
    se: float = 0.0

    @property
    def label(self) -> str:
        """The choice's text where all layers share it, else every layer with its own."""
        texts = {layer: str(choice) for layer, choice in self.choices.items()}
        shared = set(texts.values())
        return shared.pop() if len(shared) == 1 else ", ".join(f"{layer}={texts[layer]}" for layer in sorted(texts))


@dataclass(frozen=True)
class Unit:
    """A layer, or layers that are decided together; every point assigns the same layers."""

    name: str
    points: tuple[Point, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(sorted(self.points[0].choices))


def check_units(units: Sequence[Unit], dimensions: int) -> None:
    """Refuses units that no solver could use.

    Raises:
        InputError: a name or layer occurs twice, a unit has no points or points of different layers, a cost is not a
            tuple of `dimensions` integers ≥ 0, a score or standard error is not a number.
    """
    owner: dict[str, str] = {}
    names: set[str] = set()
    for unit in units:
        if unit.name in names:
            raise InputError(f"Two units are called {unit.name}. Every unit needs a name of its own.")
        names.add(unit.name)
        if not unit.points:
            raise InputError(f"The unit {unit.name} has no points. Give it at least one choice.")
        for layer in unit.layers:
            if layer in owner:
                raise InputError(
                    f"The layer {layer} belongs to {owner[layer]} and to {unit.name}: it would count twice."
                )
            owner[layer] = unit.name
        layers = unit.points[0].choices.keys()
        if any(point.choices.keys() != layers for point in unit.points):
            raise InputError(f"The points of {unit.name} assign different layers; each must assign all of them.")
        if not _sound(unit.points, dimensions):
            for point in unit.points:
                _check_point(unit.name, point, dimensions)


def _sound(points: Sequence[Point], dimensions: int) -> bool:
    """Whether the usual types hold proper values: many points at once, since each for itself takes long."""
    if {len(point.cost) for point in points} != {dimensions}:
        return False
    costs = [cost for point in points for cost in point.cost]
    numbers = [number for point in points for number in (point.score, point.se)]
    return (
        set(map(type, costs)) <= {int}
        and set(map(type, numbers)) == {float}
        and all(map(math.isfinite, numbers))
        and min(costs, default=0) >= 0
        and min(numbers[1::2]) >= 0
    )


def _check_point(name: str, point: Point, dimensions: int) -> None:
    if len(point.cost) != dimensions:
        raise InputError(
            f"The point {point.label} of {name} has {len(point.cost)} costs, but the budgets name {dimensions} dimensions."
        )
    if not all(type(cost) is int and cost >= 0 for cost in point.cost):
        raise InputError(
            f"The point {point.label} of {name} costs {point.cost}; costs are Python integers from 0 upwards."
        )
    if not (_number(point.score) and _number(point.se) and point.se >= 0):
        raise InputError(
            f"The point {point.label} of {name} has score {point.score} and standard error {point.se}. Leave out a choice "
            "whose loss could not be measured."
        )


def _number(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)


def text_key(point: Point) -> tuple[str, tuple[int, ...], float, float]:
    """What puts points in order that are alike in all that is minimised or limited."""
    return point.label, point.cost, point.score, point.se


def joined(name: str, units: Sequence[Unit]) -> Unit:
    """All combinations of the units' points as one unit, without those that another combination dominates.

    Scores, costs and variances add. With `alternatives` this makes fusion a choice: q, k and v apart, or fused.
    """
    points = units[0].points
    for unit in units[1:]:
        pairs = [_sum(first, second) for first, second in combinations(points, unit.points)]
        points = tuple(pairs[index] for index in undominated([(*pair.cost, pair.score, pair.se) for pair in pairs]))
    return Unit(name, points)


def alternatives(name: str, units: Sequence[Unit]) -> Unit:
    """One unit that takes a point of any of the given ones, which assign the same layers (fused, or apart)."""
    return Unit(name, tuple(point for unit in units for point in unit.points))


def _sum(first: Point, second: Point) -> Point:
    return Point(
        choices={**first.choices, **second.choices},
        cost=tuple(one + other for one, other in zip(first.cost, second.cost, strict=True)),
        score=first.score + second.score,
        se=math.hypot(first.se, second.se),
    )
