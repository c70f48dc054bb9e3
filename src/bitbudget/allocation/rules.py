"""What a user says about single units: pins, vetoes, floors and ceilings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from bitbudget.allocation.units import Point, Unit
from bitbudget.errors import InputError


@dataclass(frozen=True)
class Rule:
    """A limit on the points of one unit; several rules for a unit all hold.

    name: of a unit, or of a layer inside one.
    pin: the choices allowed, by their text; empty: all. veto: the choices forbidden.
    floor, ceiling: dimension → least and largest cost of the whole unit; "score" names the score.
    """

    name: str
    pin: tuple[str, ...] = ()
    veto: tuple[str, ...] = ()
    floor: Mapping[str, int | float] = field(default_factory=dict)
    ceiling: Mapping[str, int | float] = field(default_factory=dict)


def ruled(units: Sequence[Unit], rules: Sequence[Rule], dimensions: Sequence[str]) -> tuple[Unit, ...]:
    """The units with the points that their rules leave.

    Raises:
        InputError: a rule names what does not exist, or leaves a unit without points.
    """
    by_name = {unit.name: unit for unit in units}
    owner = {layer: unit.name for unit in units for layer in unit.layers}
    for rule in rules:
        name = rule.name if rule.name in by_name else owner.get(rule.name)
        if name is None:
            raise InputError(f"A rule names {rule.name}, but there is no such unit or layer.")
        unit = by_name[name]
        _check_words(rule, unit, dimensions)
        layer = rule.name if rule.name not in by_name else None
        left = tuple(point for point in unit.points if _allows(rule, layer, point, dimensions))
        if not left:
            raise InputError(_nothing_left(rule, unit))
        by_name[name] = replace(unit, points=left)
    return tuple(by_name[unit.name] for unit in units)


def _allows(rule: Rule, layer: str | None, point: Point, dimensions: Sequence[str]) -> bool:
    texts = _texts(point, layer)
    if rule.pin and not texts <= set(rule.pin):
        return False
    if texts & set(rule.veto):
        return False
    values = {**dict(zip(dimensions, point.cost, strict=True)), "score": point.score}
    return all(values[name] >= least for name, least in rule.floor.items()) and all(
        values[name] <= most for name, most in rule.ceiling.items()
    )


def _texts(point: Point, layer: str | None) -> set[str]:
    """The choices a rule looks at: the layer's, or those of all layers of the unit."""
    return {str(choice) for name, choice in point.choices.items() if layer in (None, name)}


def _check_words(rule: Rule, unit: Unit, dimensions: Sequence[str]) -> None:
    known = {*dimensions, "score"}
    for name in (*rule.floor, *rule.ceiling):
        if name not in known:
            raise InputError(
                f"The rule for {rule.name} limits {name}; the dimensions here are {', '.join(sorted(known))}."
            )
    offered = {str(choice) for point in unit.points for choice in point.choices.values()}
    for text in rule.pin:
        if text not in offered:
            raise InputError(
                f"The rule for {rule.name} pins {text}, which it is not offered; it has {_listed(offered)}."
            )


def _nothing_left(rule: Rule, unit: Unit) -> str:
    offered = {str(choice) for point in unit.points for choice in point.choices.values()}
    return (
        f"The rules for {rule.name} leave no point of the unit {unit.name}, which was left with {_listed(offered)}. "
        "Loosen a pin, veto, floor or ceiling."
    )


def _listed(texts: set[str]) -> str:
    shown = sorted(texts)[:8]
    return ", ".join(shown) + (f" and {len(texts) - 8} more" if len(texts) > 8 else "")
