"""What a model really loses: KL(original ‖ changed) in nats per token with one layer, or all of them, stored by choices.

The ground truth for scores. The original runs once; what enters each of its blocks, and its logits, are kept for all
sequences, so a changed layer is run from its own block on. The model computes in fp32, KL is summed in fp64 over the whole
vocabulary. Position 0 never counts; standard errors are over documents.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bitbudget.calibration.tokens import TokenSequence
from bitbudget.models.layers import Layer
from bitbudget.models.source import SourceModel
from bitbudget.models.stream import BlockStream, CheckpointWeights, States
from bitbudget.rounding.nearest import nearest
from bitbudget.storage import Choice

LOGITS_BYTES = 4 << 30  # the original's logits are kept up to here, else made again from the last block's result
ROWS = 32  # positions compared at a time: their fp64 arrays stay in the processor's cache

Logits = Float[Tensor, "scored vocabulary"]
Stored = Callable[[Layer, Float[Tensor, "out in"], str], Float[Tensor, "out in"]]


@dataclass(frozen=True)
class Loss:
    """kl: nats per token. documents: KL sum and number of tokens of each, in the order of the documents."""

    kl: float
    se: float
    documents: tuple[tuple[float, int], ...]

    @classmethod
    def of(cls, documents: Sequence[tuple[float, int]]) -> "Loss":
        tokens = sum(count for _, count in documents)
        kl = sum(value for value, _ in documents) / tokens
        spread = sum((value - kl * count) ** 2 for value, count in documents)
        number = len(documents)
        se = math.sqrt(number / (number - 1) * spread) / tokens if number > 1 else math.nan
        return cls(kl, se, tuple(documents))


def by_nearest(layer: Layer, weight: Float[Tensor, "out in"], choice: str) -> Float[Tensor, "out in"]:
    """What is read back of a layer that round-to-nearest stored."""
    return nearest(weight, Choice.parse(choice)).dequantize()


class Replaced:
    """The tensors of a checkpoint, some of them replaced for as long as a context lasts."""

    def __init__(self, weights: CheckpointWeights) -> None:
        self._weights = weights
        self._values: Mapping[str, Tensor] = {}

    @contextmanager
    def by(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """`values`: under the names of the files, oriented as there."""
        self._values = values
        try:
            yield
        finally:
            self._values = {}

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        return self._values[name].to(dtype) if name in self._values else self._weights.tensor(name, dtype)

    def rows(self, name: str, ids: Int[Tensor, " n"]) -> Float[Tensor, "n width"]:
        return self._values[name][ids] if name in self._values else self._weights.rows(name, ids)


class Measured:
    """One model on one set of sequences. `stored` says what is read back of a layer stored by a choice."""

    def __init__(self, source: SourceModel, sequences: Sequence[TokenSequence], stored: Stored = by_nearest) -> None:
        self.source = source
        self.layers = {layer.name: layer for layer in source.layers}
        self._sequences = tuple(sequences)
        self._stored = stored
        self._plain = CheckpointWeights(source.checkpoint)
        self._weights = Replaced(self._plain)
        device, dtype = torch.device("cpu"), torch.float32
        self._original = BlockStream(source, self._plain, device, dtype)
        self._changed = BlockStream(source, self._weights, device, dtype)
        self._entering = self._run_original()
        vocabulary = source.model.get_input_embeddings().num_embeddings
        needed = sum(sequence.scored for sequence in sequences) * vocabulary * dtype.itemsize
        self._kept = list(self._scored(self._original, self._entering[-1])) if needed <= LOGITS_BYTES else None

    def layer_kl(self, name: str, choice: str) -> Loss:
        """Only this layer is stored."""
        return self.plan_kl({name: choice})

    def plan_kl(self, plan: Mapping[str, str]) -> Loss:
        """Every layer named is stored by its choice; the others stay as they are."""
        return self.values_kl({name: self.read_back(name, choice) for name, choice in plan.items()})

    def values_kl(self, values: Mapping[str, Float[Tensor, "out in"]]) -> Loss:
        """Every layer named has these weights [out, in] in place of its own."""
        layers = [self.layers[name] for name in values]
        tensors = {layer.tensor: values[layer.name].T if layer.transposed else values[layer.name] for layer in layers}
        with self._weights.by(tensors):
            states = self._run_changed(layers)
            expected = self._scored(self._original, self._entering[-1]) if self._kept is None else self._kept
            return self._compare(expected, self._scored(self._changed, states))

    def read_back(self, name: str, choice: str) -> Float[Tensor, "out in"]:
        """A layer's weights as they are read after storing them by a choice."""
        return self._stored(self.layers[name], self.original(name), choice)

    def original(self, name: str) -> Float[Tensor, "out in"]:
        """A layer's weights."""
        layer = self.layers[name]
        weight = self._plain.tensor(layer.tensor, torch.float32)
        return weight.T.contiguous() if layer.transposed else weight

    def _run_original(self) -> list[States]:
        """Where the original stands before every block, and after the last."""
        states = self._original.start([sequence.ids for sequence in self._sequences])
        kept = [_copy(states)]
        for index in range(self._original.block_count):
            self._original.run_block(index, states)
            kept.append(_copy(states))
        return kept

    def _run_changed(self, layers: Sequence[Layer]) -> States:
        """All sequences after the last block, run from the first place where one of these layers is read."""
        if any(layer.kind in ("embedding", "tied") for layer in layers):
            states = self._changed.start([sequence.ids for sequence in self._sequences])
        else:
            last = self._changed.block_count
            first = min((last if layer.block is None else layer.block for layer in layers), default=last)
            states = _copy(self._entering[first])
        for index in range(states.next_block, self._changed.block_count):
            self._changed.run_block(index, states)
        return states

    def _scored(self, stream: BlockStream, states: States) -> Iterator[Logits]:
        """Every sequence's logits where they count, copied so that the others are given back."""
        for sequence, logits in zip(self._sequences, stream.logits(states), strict=True):
            yield logits[sequence.positions].clone()

    def _compare(self, expected: Iterable[Logits], found: Iterable[Logits]) -> Loss:
        documents: dict[int, tuple[float, int]] = {}
        for sequence, one, other in zip(self._sequences, expected, found, strict=True):
            total, tokens = documents.get(sequence.document, (0.0, 0))
            documents[sequence.document] = total + divergence(one, other), tokens + sequence.scored
        return Loss.of([documents[document] for document in sorted(documents)])


def divergence(original: Logits, changed: Logits) -> float:
    """KL of the distributions of these logits, in nats, summed over the tokens; in fp64."""
    total = 0.0
    for one, other in zip(original.split(ROWS), changed.split(ROWS), strict=True):
        log_p = one.double().log_softmax(-1)
        gap = log_p - other.double()
        # log q = logit - log sum exp, and p sums to one
        total += float((log_p.exp() * gap).sum() + torch.logsumexp(other.double(), -1).sum())
    return total


def _copy(states: States) -> States:
    copied = states.copy()
    copied.next_block = states.next_block
    return copied
