"""Learns how a model chains its decoder blocks, and proves on a few tokens that they can be run one at a time.

Three things are shown with made-up hidden states: each block receives the very object that the block before returned;
the other arguments do not change with the hidden states; what reaches the head depends only on the last block's result.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from bitbudget.errors import InputError
from bitbudget.models.forward import ModelForward
from bitbudget.models.recording import Call, Outcome, Stop, call_at, hidden_slot, same, untraceable

LAST = 0  # seed of the last block's made-up result, the same in every pass


@dataclass(frozen=True)
class Chain:
    """Where each block takes the hidden state (position or keyword) and how blocks return it."""

    slots: tuple[int | str, ...]
    outcome: Outcome


@dataclass
class _Pass:
    """One pass with made-up hidden states; `seed` makes those before the last block different from other passes'."""

    forward: ModelForward
    outcome: Outcome
    seed: int
    slots: list[int | str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    head_input: Tensor | None = None
    _made_up: Tensor | None = None

    def on_block(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        count = len(self.forward.blocks)
        if index != len(self.calls):
            raise _not_straight(self.forward, index, f"is called as number {len(self.calls)} of the blocks")
        slot = hidden_slot(args, kwargs, self._made_up)
        if slot is None:
            raise _not_straight(self.forward, index, "receives something else than what the block before it returned")
        hidden, call = call_at(slot, args, kwargs)
        self.slots.append(slot)
        self.calls.append(call)
        self._made_up = self._random(hidden, LAST if index + 1 == count else self.seed + index)
        if index + 1 == count and self.forward.head is None:
            raise Stop
        return self.outcome.with_rest(lambda value: self._random(value, self.seed - 1)).wrap(self._made_up)

    def on_head(self, hidden: Tensor) -> None:
        self.head_input = hidden
        raise Stop

    @staticmethod
    def _random(like: Any, seed: int) -> Any:
        if not isinstance(like, Tensor) or not like.is_floating_point():
            return like
        generator = torch.Generator().manual_seed(seed)  # an own generator: the global one stays as it was
        return torch.randn(like.shape, generator=generator).to(like.device, like.dtype)


def probe_chain(
    forward: ModelForward, sequence: Int[Tensor, " tokens"], loaded: Callable[[int], AbstractContextManager[nn.Module]]
) -> Chain:
    """How the blocks hang together; InputError, naming the block, if they are no straight chain."""
    outcome = _outcome(forward, sequence, loaded)
    first, second, third = (_Pass(forward, outcome, seed) for seed in (1_000, 2_000, 3_000))
    forward.run(sequence, first.on_block, forward.embed_rows, first.on_head)
    forward.run(sequence, second.on_block, forward.embed_rows, second.on_head)
    forward.run(sequence, third.on_block, forward.embed_zeros, third.on_head)
    if len(first.calls) != len(forward.blocks):
        raise _not_straight(forward, len(first.calls), "is never called")
    for index, (one, other) in enumerate(zip(first.calls, second.calls, strict=True)):
        _check_arguments(forward, index, one, other)
    if not same(first.head_input, second.head_input) or not same(first.head_input, third.head_input):
        raise InputError(
            f"What {type(forward.model).__name__} hands to its output head depends on more than its last block's "
            "result, so its blocks cannot be run one at a time."
        )
    return Chain(tuple(first.slots), outcome)


def _outcome(
    forward: ModelForward, sequence: Tensor, loaded: Callable[[int], AbstractContextManager[nn.Module]]
) -> Outcome:
    """The structure of what block 0 really returns."""
    received: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def receive(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        received.append((args, kwargs))
        raise Stop

    forward.run(sequence, receive, forward.embed_rows)
    if not received:
        raise _not_straight(forward, 0, "is never called")
    args, kwargs = received[0]
    if hidden_slot(args, kwargs, None) is None:
        raise _not_straight(forward, 0, "receives no hidden state")
    with torch.no_grad(), loaded(0) as block:
        returned = block(*args, **kwargs)
    outcome = Outcome.of(returned)
    if outcome is None:
        raise _not_straight(forward, 0, f"returns a {type(returned).__name__}, not a hidden state")
    return outcome


def _check_arguments(forward: ModelForward, index: int, one: Call, other: Call) -> None:
    pairs: list[tuple[int | str, Any, Any]] = [*zip(range(len(one.args)), one.args, other.args, strict=True)]
    pairs += [(key, value, other.kwargs.get(key)) for key, value in one.kwargs.items()]
    for place, value, again in pairs:
        name = f"argument {place}" if isinstance(place, int) else f"the argument {place!r}"
        if not same(value, again):
            raise _not_straight(forward, index, f"receives {name}, which depends on what other blocks return")
        kind = untraceable(value)
        if kind:
            raise _not_straight(
                forward, index, f"receives {name} with a {kind}, through which blocks could hand values to each other"
            )


def _not_straight(forward: ModelForward, index: int, what: str) -> InputError:
    block = type(forward.blocks[min(index, len(forward.blocks) - 1)]).__name__
    return InputError(
        f"The decoder blocks of {type(forward.model).__name__} are no straight chain: block {index} "
        f"({forward.blocks_path}.{index}, {block}) {what}. bitbudget runs blocks one at a time, so it cannot "
        "run this model."
    )
