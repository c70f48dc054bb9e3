"""Which channels between two operations of a block can be scaled, by the names that files and layers have."""

from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from bitbudget.models.layers import Layer
from bitbudget.models.stream import BlockStream, States
from bitbudget.transforms.proof import DoubleBlock, random_hidden
from bitbudget.transforms.proposals import Pair, Proposals, Rows, Search

PROOF_TOKENS = 24

Structure = tuple[tuple[str, type[nn.Module], tuple[tuple[int, ...], ...]], ...]


@dataclass(frozen=True)
class Producer:
    """What makes the channels: a norm's gain or rows of a linear, by their tensors in the files.

    `one_plus`: the gain is stored as 1 + weight. `rows[c]` is the row of the linear that makes channel c; None: row c.
    """

    kind: Literal["norm", "linear"]
    module: str
    weight: str
    bias: str | None
    one_plus: bool = False
    rows: Rows = None


@dataclass(frozen=True)
class ScaleGroup:
    """A producer that may be divided by a scale per channel while the columns of its consumers are multiplied by it.

    `consumers` are layer names. `inspected` is the module at whose output a scale is judged. `columns[j]` is the channel
    that the consumers' column j receives; None: channel j.
    """

    block: int
    producer: Producer
    consumers: tuple[str, ...]
    inspected: str
    channels: int
    columns: tuple[int, ...] | None = None

    @property
    def repeats(self) -> int:
        """How many columns a channel feeds; more than one for the values of grouped attention."""
        return 1 if self.columns is None else len(self.columns) // self.channels


@dataclass(frozen=True)
class Unscaled:
    """Layers of a block whose input gets no scale, and why."""

    layers: tuple[str, ...]
    reason: str


def find_scale_groups(
    stream: BlockStream, states: States, index: int
) -> tuple[tuple[ScaleGroup, ...], tuple[Unscaled, ...]]:
    """The proven groups of one block and its other linears; the states are this stream's, the block may be loaded."""
    return PairFinder(stream).find(states, index)


class PairFinder:
    """Finds the groups of a stream's blocks. What was found in one is tried first in blocks that are built alike.

    That a block is built alike only saves the search: its groups are proven by its own weights.
    """

    def __init__(self, stream: BlockStream) -> None:
        source = stream.source
        self._stream = stream
        self._blocks = source.places.blocks
        uses = Counter(source.parameters.file_tensor(name) for name in _parameters(stream.model))
        self._once = frozenset(tensor for tensor, count in uses.items() if tensor is not None and count == 1)
        linears = [layer for layer in source.layers if layer.kind == "linear"]
        self._layers: dict[str, Layer] = {layer.module: layer for layer in linears if layer.tensor in self._once}
        self._shared = tuple(layer for layer in linears if layer.tensor not in self._once)
        self._known: dict[Structure, Proposals] = {}
        self._short: States | None = None

    def find(self, states: States, index: int) -> tuple[tuple[ScaleGroup, ...], tuple[Unscaled, ...]]:
        """The proven groups of block `index`, and its other linears with reasons."""
        path = f"{self._blocks}.{index}"
        block = self._stream.model.get_submodule(path)
        if self._short is None:
            # A short call of the model's own: proofs need few tokens, and recorded arguments cannot be cut.
            self._short = self._stream.start([max(states.sequences, key=len)[:PROOF_TOKENS]])
        empty = any(parameter.is_meta for parameter in block.parameters())
        generator = torch.Generator().manual_seed(index)
        with self._stream.loaded(index) if empty else nullcontext():
            hidden = random_hidden(self._short.hidden[0], generator)
            double = DoubleBlock(block, self._short.calls[0][index], hidden)
            found = self._found(double, path, generator)
        groups = tuple(self._group(pair, found, index) for pair in found.pairs)
        unscaled = [
            Unscaled(tuple(self._layers[f"{path}.{name}"].name for name in names), reason)
            for names, reason in found.unscaled
        ]
        shared = tuple(layer.name for layer in self._shared if layer.block == index)
        return groups, (
            *unscaled,
            *([Unscaled(shared, "the model uses their weights at several places")] if shared else []),
        )

    def _found(self, double: DoubleBlock, path: str, generator: torch.Generator) -> Proposals:
        structure = _structure(double.block)
        known = self._known.get(structure)
        if known is not None and double.agrees(known.changes(double.block, generator)):
            return known
        paths = [name for name, module in double.block.named_modules() if self._is_changeable(f"{path}.{name}", module)]
        linears = frozenset(name for name in paths if f"{path}.{name}" in self._layers)
        try:
            found = Search(double, linears, frozenset(paths), generator).found()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # an operation that torch has not in fp64
            reason = (
                f"the block cannot be computed in fp64, where a scale would be proven ({str(error).splitlines()[0]})"
            )
            found = Proposals((), ((tuple(sorted(linears)), reason),), frozenset())
        self._known[structure] = found
        return found

    def _is_changeable(self, path: str, module: nn.Module) -> bool:
        """Whether all parameters of a module are tensors of the files, each used nowhere else."""
        own = [f"{path}.{name}" for name, _ in module.named_parameters(recurse=False)]
        return bool(own) and all(self._stream.source.parameters.file_tensor(name) in self._once for name in own)

    def _group(self, pair: Pair, found: Proposals, index: int) -> ScaleGroup:
        path = f"{self._blocks}.{index}"
        module = f"{path}.{pair.producer}"
        file_tensor = self._stream.source.parameters.file_tensor
        weight = file_tensor(f"{module}.weight")
        assert weight is not None  # producers are changeable
        return ScaleGroup(
            block=index,
            producer=Producer(pair.kind, module, weight, file_tensor(f"{module}.bias"), pair.one_plus, pair.rows),
            consumers=tuple(self._layers[f"{path}.{name}"].name for name in pair.consumers),
            inspected=f"{path}.{_common(pair.consumers, found.called)}".removesuffix("."),
            channels=pair.channels,
            columns=pair.columns,
        )


def _parameters(model: nn.Module) -> Iterable[str]:
    return (name for name, _ in model.named_parameters(remove_duplicate=False))


def _structure(block: nn.Module) -> Structure:
    """What two blocks that are built alike have in common."""
    return tuple(
        (path, type(module), tuple(tuple(each.shape) for each in module.parameters(recurse=False)))
        for path, module in block.named_modules()
    )


def _common(paths: tuple[str, ...], called: frozenset[str]) -> str:
    """The innermost module around all paths that the block calls; the block itself is the empty path."""
    parts = paths[0].split(".")
    for length in range(len(parts), 0, -1):
        outer = ".".join(parts[:length])
        if outer in called and all(path == outer or path.startswith(f"{outer}.") for path in paths):
            return outer
    return ""
