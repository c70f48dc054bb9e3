"""What a model hands to its decoder blocks, recorded while its own forward runs with the blocks replaced."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

Hidden = Float[Tensor, "1 tokens width"]


class Stop(Exception):
    """Ends the model's forward once everything that was asked for is recorded; never leaves this floor."""


class _HiddenState:
    """Stands in recorded arguments where the hidden state goes."""

    def __repr__(self) -> str:
        return "<hidden state>"


HIDDEN = _HiddenState()
PLAIN = (
    bool | int | float | str | torch.dtype | torch.device | _HiddenState
)  # argument types that cannot carry hidden states


@dataclass(frozen=True)
class Call:
    """The arguments of one block for one sequence, `HIDDEN` in place of the hidden state."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def apply(self, block: nn.Module, hidden: Hidden) -> Any:
        """The block's own return value for this hidden state."""
        args = [hidden if value is HIDDEN else value for value in self.args]
        return block(*args, **{key: hidden if value is HIDDEN else value for key, value in self.kwargs.items()})


@dataclass(frozen=True)
class Outcome:
    """How a block returns its hidden state: alone, or first in a tuple or list with `rest` behind it."""

    kind: type | None
    rest: tuple[Any, ...] = ()

    @classmethod
    def of(cls, returned: Any) -> "Outcome | None":
        """The structure of a block's return value; None if the hidden state is not where it is expected."""
        if isinstance(returned, Tensor):
            return cls(None)
        if type(returned) in (tuple, list) and returned and isinstance(returned[0], Tensor):
            return cls(type(returned), tuple(returned[1:]))
        return None

    def wrap(self, hidden: Hidden) -> Any:
        """The hidden state in the form in which the model expects a block's result."""
        return hidden if self.kind is None else self.kind((hidden, *self.rest))

    def with_rest(self, change: Callable[[Any], Any]) -> "Outcome":
        """The same structure with every value behind the hidden state changed."""
        return replace(self, rest=tuple(change(value) for value in self.rest))


@contextmanager
def replaced_forward(modules: Sequence[nn.Module], forwards: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """Calls of these modules go to `forwards`; classes, attributes and hooks of the modules stay as they are."""
    try:
        for module, forward in zip(modules, forwards, strict=True):
            module.__dict__["forward"] = forward
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)


def hidden_slot(args: tuple[Any, ...], kwargs: dict[str, Any], expected: Tensor | None) -> int | str | None:
    """Where the hidden state is among a block's arguments: the very object `expected`, or by custom if that is None."""
    places: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    if expected is not None:
        return next((place for place, value in places if value is expected), None)
    if args and isinstance(args[0], Tensor):
        return 0
    return "hidden_states" if isinstance(kwargs.get("hidden_states"), Tensor) else None


def call_at(slot: int | str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Call]:
    """Splits a block's arguments into the hidden state and the rest."""
    if isinstance(slot, int):
        return args[slot], Call((*args[:slot], HIDDEN, *args[slot + 1 :]), kwargs)
    return kwargs[slot], Call(args, {**kwargs, slot: HIDDEN})


def same(one: Any, other: Any) -> bool:
    """Whether two recorded arguments are alike: tensors and plain values by value, other objects by type."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return one is other or (alike and torch.equal(one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list) and type(one) is type(other):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or not isinstance(one, PLAIN))


def untraceable(value: Any) -> str | None:
    """The type of an object inside a recorded argument that could carry values unseen: a cache, a list to fill."""
    if isinstance(value, tuple):
        return next(filter(None, map(untraceable, value)), None)
    if isinstance(value, dict | list) and value:
        return next(filter(None, map(untraceable, value.values() if isinstance(value, dict) else value)), None)
    return None if value is None or isinstance(value, PLAIN | Tensor) else type(value).__name__


def shared_calls(calls: tuple[Call, ...], earlier: tuple[Call, ...] | None) -> tuple[Call, ...]:
    """The same calls, with tensors replaced by equal ones of earlier calls; the earlier calls if all are equal."""
    if earlier is None:
        return calls
    if all(map(_equal, calls, earlier)):
        return earlier
    pairs = zip(calls, earlier, strict=True)
    return tuple(Call(_shared(call.args, old.args), _shared(call.kwargs, old.kwargs)) for call, old in pairs)


def _equal(call: Call, earlier: Call) -> bool:
    return same(call.args, earlier.args) and same(call.kwargs, earlier.kwargs)


def _shared(value: Any, earlier: Any) -> Any:
    if isinstance(value, Tensor):
        return earlier if isinstance(earlier, Tensor) and same(value, earlier) else value
    if type(value) is dict and isinstance(earlier, dict):
        return {key: _shared(entry, earlier.get(key)) for key, entry in value.items()}
    if type(value) in (tuple, list) and isinstance(earlier, tuple | list) and len(value) == len(earlier):
        return type(value)(map(_shared, value, earlier))
    return value
