"""Runs a model one decoder block at a time, with transformers' own modules: bit for bit what the whole model gives."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bitbudget.errors import InputError
from bitbudget.models.filling import Filler, StemFiller
from bitbudget.models.forward import ModelForward
from bitbudget.models.probe import Chain, probe_chain
from bitbudget.models.recording import Call, Stop, call_at, shared_calls
from bitbudget.models.source import SourceModel
from bitbudget.models.weights import CheckpointWeights, Weights

__all__ = ["BlockStream", "CheckpointWeights", "States", "Weights"]

PROBE_TOKENS = 8


@dataclass
class States:
    """Where every sequence stands: `hidden` enters block `next_block` (== the number of blocks: enters the final norm).

    `calls[sequence][block]` are the arguments recorded from the model; equal ones of equally long sequences are shared.
    """

    sequences: tuple[Int[Tensor, " _"], ...]
    hidden: list[Float[Tensor, "1 _ width"]]
    calls: tuple[tuple[Call, ...], ...]
    next_block: int = 0

    def copy(self) -> "States":
        """The same states to go another way; tensors are shared until a block replaces them."""
        return States(self.sequences, list(self.hidden), self.calls, self.next_block)


class BlockStream:
    """One model, one source of weights, one device and dtype; at most one block is in memory.

    Each sequence is a batch of one. Dropout is off, nothing is cached, gradients are off except where `call` is used
    with gradients on. The skeleton is this object's own, so several streams of one source can run in turn.
    """

    def __init__(self, source: SourceModel, weights: Weights, device: torch.device, dtype: torch.dtype) -> None:
        self.source = source
        self.model = source.skeleton(dtype)
        self.device = device
        self.dtype = dtype
        self._blocks_path = source.places.blocks
        self._filler = Filler(self.model, source.parameters, weights, device)
        self._stem = StemFiller(self._filler, source.places.blocks, source.places.embedding)
        self._forward = ModelForward(self.model, self._filler, source.places)
        self._chain: Chain | None = None

    @property
    def block_count(self) -> int:
        """Number of decoder blocks."""
        return len(self._forward.blocks)

    def start(self, sequences: Sequence[Int[Tensor, " _"]]) -> States:
        """Embeds the sequences and records what the model hands to every block.

        Raises InputError for an empty sequence, for ids outside the vocabulary, and for a model whose blocks are no
        straight chain (a block receives something else than the block before returned).
        """
        sequences = tuple(sequence.to(self.device, torch.long) for sequence in sequences)
        if not sequences:
            raise InputError("There is no sequence to run.")
        self._check_ids(sequences)
        hidden, calls = [], []
        earlier: dict[int, tuple[Call, ...]] = {}
        with torch.no_grad():
            chain = self._probed(sequences[0])
            for sequence in sequences:
                entering, recorded = self._record(chain, sequence)
                recorded = shared_calls(recorded, earlier.get(len(sequence)))
                earlier[len(sequence)] = recorded
                hidden.append(entering)
                calls.append(recorded)
        self.free()
        return States(sequences, hidden, tuple(calls))

    def loaded(self, index: int) -> AbstractContextManager[nn.Module]:
        """The block with its weights, as long as the context lasts."""
        return self._filler.filled(f"{self._blocks_path}.{index}")

    def call(
        self, index: int, states: States, sequence: int, hidden: Float[Tensor, "1 tokens width"] | None = None
    ) -> Float[Tensor, "1 tokens width"]:
        """What the block, which must be loaded, makes of a sequence's hidden state (or of `hidden` in its place)."""
        entering = states.hidden[sequence] if hidden is None else hidden
        returned = states.calls[sequence][index].apply(self._forward.blocks[index], entering)
        return returned if isinstance(returned, Tensor) else returned[0]

    def finish(
        self, states: States, sequence: int, hidden: Float[Tensor, "1 tokens width"] | None = None
    ) -> Float[Tensor, "tokens vocab"]:
        """The logits of one sequence from its hidden state after the last block (or from `hidden` in its place).

        The model's own forward runs (final norm, head, soft-capping) with the blocks passed over. What it loads stays
        loaded until `free`.
        """
        chain, last = self._probed(states.sequences[sequence]), self.block_count - 1
        entering = states.hidden[sequence] if hidden is None else hidden

        def on_block(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return chain.outcome.wrap(entering if index == last else call_at(chain.slots[index], args, kwargs)[0])

        return self._forward.run(states.sequences[sequence], on_block, self._forward.embed_zeros).logits[0]

    def embedding_gradient(
        self, sequence: Int[Tensor, " tokens"], gradient: Float[Tensor, "1 tokens width"]
    ) -> tuple[Int[Tensor, " n"], Float[Tensor, "n columns"]]:
        """Ids that occur, ascending, and the gradient of their rows of the embedding's table, from the gradient at what enters
        block 0. What it loads stays loaded until `free`.
        """
        forward, entering = self._forward, []
        chain = self._probed(sequence)
        present, places = torch.unique(sequence, return_inverse=True)
        table = forward.table_rows(present).detach().requires_grad_()

        def embed(ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return forward.embed_from(table, places.view(ids.shape), *args, **kwargs)

        def on_block(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            entering.append(call_at(chain.slots[index], args, kwargs)[0])
            raise Stop

        with torch.enable_grad():
            forward.run(sequence, on_block, embed)
            (rows,) = torch.autograd.grad(entering[0], table, gradient)
        return present, rows.float()

    def free(self) -> None:
        """Gives back what lies outside the blocks: position embeddings, final norm, head."""
        self._stem.empty()

    def run_block(self, index: int, states: States) -> None:
        """Loads the block, moves every sequence through it, and frees it."""
        if index != states.next_block:
            raise ValueError(f"block {index} was asked for, but the states stand before block {states.next_block}")
        with torch.no_grad(), self.loaded(index):
            for sequence in range(len(states.hidden)):
                states.hidden[sequence] = self.call(index, states, sequence)
        self.free()
        states.next_block += 1

    def logits(self, states: States) -> Iterator[Float[Tensor, "tokens vocab"]]:
        """The logits of each sequence in turn, as `finish` gives them; final norm and head are loaded once."""
        if states.next_block != self.block_count:
            raise ValueError(
                f"the states stand before block {states.next_block} of {self.block_count}, not after the last"
            )
        try:
            for sequence in range(len(states.sequences)):
                with torch.no_grad():
                    logits = self.finish(states, sequence)
                yield logits
        finally:
            self.free()

    def forward(
        self, sequences: Sequence[Int[Tensor, " _"]], progress: Callable[[int, int], None] | None = None
    ) -> States:
        """`start` and all blocks; `progress(done, total)` is called after each block."""
        states = self.start(sequences)
        for index in range(self.block_count):
            self.run_block(index, states)
            if progress is not None:
                progress(index + 1, self.block_count)
        return states

    def _check_ids(self, sequences: Sequence[Tensor]) -> None:
        vocabulary = self._forward.embedding.num_embeddings
        for number, sequence in enumerate(sequences):
            if not len(sequence):
                raise InputError(f"Sequence {number} is empty; a model needs at least one token.")
            low, high = int(sequence.min()), int(sequence.max())
            if low < 0 or high >= vocabulary:
                raise InputError(
                    f"Sequence {number} holds token ids from {low} to {high}, but the model's vocabulary has "
                    f"{vocabulary} entries. The tokenizer belongs to another model."
                )

    def _probed(self, sequence: Tensor) -> Chain:
        if self._chain is None:
            with torch.no_grad():
                self._chain = probe_chain(self._forward, sequence[:PROBE_TOKENS], self.loaded)
            self.free()
        return self._chain

    def _record(self, chain: Chain, sequence: Tensor) -> tuple[Tensor, tuple[Call, ...]]:
        """What enters block 0, and the arguments of every block."""
        calls: list[Call] = []
        entering: list[Tensor] = []

        def on_block(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden, call = call_at(chain.slots[index], args, kwargs)
            calls.append(call)
            entering.append(hidden)
            if index + 1 == self.block_count:
                raise Stop
            return chain.outcome.wrap(hidden)

        self._forward.run(sequence, on_block, self._forward.embed_rows)
        return entering[0], tuple(calls)
