"""What one plan does otherwise than another."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bitbudget.allocation.plan import Plan


@dataclass(frozen=True)
class Change:
    """A layer's choices in the two plans; None where a plan lacks the layer."""

    layer: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Difference:
    """changes: in the order of layers' names; costs: dimension → totals before and after; inputs: names whose hashes
    differ, so that the two losses cannot be compared."""

    changes: tuple[Change, ...]
    layers: int
    costs: Mapping[str, tuple[int | None, int | None]]
    loss: tuple[float | None, float | None]
    inputs: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The difference as JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The difference for a reader, one fact a line."""
        lines = [f"{len(self.changes)} of {self.layers} layers differ"]
        lines += [
            f"{change.layer}: {change.before or 'absent'} -> {change.after or 'absent'}" for change in self.changes
        ]
        for name, (before, after) in self.costs.items():
            lines.append(f"{name}: {_amount(before)} -> {_amount(after)}{_shift(before, after)}")
        lines.append(f"predicted loss: {_loss(self.loss[0])} -> {_loss(self.loss[1])}")
        if self.inputs:
            lines.append(f"measured on different inputs ({', '.join(self.inputs)}): the losses cannot be compared")
        return lines


def diff(before: Plan, after: Plan) -> Difference:
    """Layers whose choice differs, and totals side by side."""
    names = sorted({*before.layers, *after.layers})
    changes = (Change(name, before.layers.get(name), after.layers.get(name)) for name in names)
    dimensions = [*before.costs, *(name for name in after.costs if name not in before.costs)]
    inputs = sorted({*before.inputs, *after.inputs})
    return Difference(
        changes=tuple(change for change in changes if change.before != change.after),
        layers=len(names),
        costs={name: (before.costs.get(name), after.costs.get(name)) for name in dimensions},
        loss=(before.loss, after.loss),
        inputs=tuple(name for name in inputs if before.inputs.get(name) != after.inputs.get(name)),
    )


def _loss(value: float | None) -> str:
    return "not predicted" if value is None else f"{value:.6g}"


def _amount(total: int | None) -> str:
    return "absent" if total is None else f"{total:,}"


def _shift(before: int | None, after: int | None) -> str:
    return "" if before is None or after is None or before == after else f" ({after - before:+,})"
