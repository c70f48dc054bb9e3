"""Proposes pairs of a producer and its consumers inside one block, and keeps those that are proven.

Linears that receive the same tensor form a set. Its producer is the norm that returned that tensor, or an earlier linear
whose rows scale the tensor column by column, which shows when those rows are scaled at random: so v finds o through
attention (with the repeated heads of grouped attention) and up finds down, and q, k and gate find nothing. Every
candidate then has to leave the block's output as it is. No names and no architectures are known here.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bitbudget.transforms.proof import Change, DoubleBlock, Trace

SPREAD = 0.5  # deviation of the logarithm of the scales that a pair is proven with
RATIO_TOLERANCE = 1e-9

HEAD_SIZES = tuple(range(8, 513, 8))

Scale = Float64[Tensor, " channels"]
Rows = tuple[int, ...] | None  # None: every row, in order


@dataclass(frozen=True)
class Pair:
    """A producer and its consumers, by module paths in the block.

    Channel c is row `rows[c]` of a linear producer; the consumers' column j receives channel `columns[j]`. None: the same.
    """

    kind: Literal["norm", "linear"]
    producer: str
    consumers: tuple[str, ...]
    channels: int
    rows: Rows = None
    columns: tuple[int, ...] | None = None
    one_plus: bool = False

    def changes(self, block: nn.Module, generator: torch.Generator) -> dict[str, Change]:
        """Random scales: the producer is divided, the consumers are multiplied."""
        producer = block.get_submodule(self.producer)
        draw = torch.randn(self.channels, generator=generator, dtype=torch.float64)
        scale = torch.exp(SPREAD * draw).to(_weight(producer).device)
        divided = row_factor(1 / scale, self.rows, out_features(producer))
        multiplied = scale if self.columns is None else scale[list(self.columns)]
        changes = {path: Change(columns=multiplied) for path in self.consumers}
        return changes | {self.producer: Change(rows=divided, one_plus=self.one_plus)}


@dataclass(frozen=True)
class Proposals:
    """Proven pairs, and sets of linears that have none, with the reason; all by paths in the block."""

    pairs: tuple[Pair, ...]
    unscaled: tuple[tuple[tuple[str, ...], str], ...]
    called: frozenset[str]  # modules that ran

    def changes(self, block: nn.Module, generator: torch.Generator) -> dict[str, Change]:
        """Random scales on all pairs at once."""
        together: dict[str, Change] = {}
        for pair in self.pairs:
            for path, change in pair.changes(block, generator).items():
                together[path] = together[path].joined(change) if path in together else change
        return together


@dataclass(frozen=True)
class _Set:
    """Linears that receive the same tensor; `others` are no layers and receive it too."""

    input: Tensor
    consumers: tuple[str, ...]
    others: tuple[str, ...]


class Search:
    """One block's search. `linears`: paths of its layers; `scalable`: modules whose tensors may be changed."""

    def __init__(
        self, block: DoubleBlock, linears: frozenset[str], scalable: frozenset[str], generator: torch.Generator
    ) -> None:
        self._block = block
        self._linears = linears
        self._scalable = scalable
        self._generator = generator
        self._trace = Trace()
        self._scaled: dict[tuple[str, Rows], tuple[Scale, Trace]] = {}
        # RuntimeError where the block cannot compute in fp64.
        self._is_finite = bool(torch.isfinite(block.run({}, self._trace)).all())
        self._order = list(self._trace.inputs)

    def found(self) -> Proposals:
        """All proven pairs; every linear is in one of them or among the unscaled."""
        pairs: list[Pair] = []
        unscaled = []
        for entry in self._sets():
            found = self._proven(entry)
            if isinstance(found, Pair):
                pairs.append(found)
            else:
                unscaled.append((entry.consumers, found))
        idle = tuple(sorted(self._linears - self._trace.inputs.keys()))
        if idle:
            unscaled.append((idle, "the block did not call them"))
        return Proposals(tuple(pairs), tuple(unscaled), frozenset(self._trace.called))

    def _sets(self) -> Iterator[_Set]:
        readers: dict[object, list[str]] = {}
        for path, inputs in self._trace.inputs.items():
            for key in dict.fromkeys(map(_key, inputs)):
                readers.setdefault(key, []).append(path)
        for paths in readers.values():
            consumers = tuple(path for path in paths if path in self._linears)
            others = (path for path in paths if not any(_around(path, consumer) for consumer in consumers))
            if consumers:
                yield _Set(self._trace.inputs[consumers[0]][0], consumers, tuple(others))

    def _proven(self, entry: _Set) -> Pair | str:
        """The proven pair of a set, or why there is none."""
        if not self._is_finite:
            return "what the block computes is not finite, so nothing can be proven"
        if entry.others:
            return f"{_listed(entry.others)}, no layer that could be scaled with them, reads the same input"
        norm = next((path for path in self._order if self._is_norm_of(path, entry.input)), None)
        return self._of_linear(entry) if norm is None else self._of_norm(norm, entry)

    def _is_norm_of(self, path: str, made: Tensor) -> bool:
        output = self._trace.outputs.get(path)
        if output is None or _key(output) != _key(made):
            return False
        own = dict(self._block.block.get_submodule(path).named_parameters(recurse=False))
        return "weight" in own and own.keys() <= {"weight", "bias"} and own["weight"].shape == made.shape[-1:]

    def _of_norm(self, norm: str, entry: _Set) -> Pair | str:
        if norm not in self._scalable:
            return f"the gain of {norm}, which makes their input, is not one tensor of the files that is used once"
        for one_plus in (False, True):
            pair = Pair("norm", norm, entry.consumers, entry.input.shape[-1], one_plus=one_plus)
            if self._agrees(pair):
                if one_plus and "bias" in self._block.block.get_submodule(norm)._parameters:
                    return f"{norm} stores 1 + weight beside a bias, and no common scale of both is exact"
                return pair
        return f"scaling {norm}, which makes their input, changes what the block computes: its output is used elsewhere too"

    def _of_linear(self, entry: _Set) -> Pair | str:
        tried: dict[str, None] = {}
        for path in self._order[: self._order.index(entry.consumers[0])]:
            module = self._block.block.get_submodule(path)
            if path not in self._scalable or not isinstance(module, nn.Linear | Conv1D):
                continue
            for rows in _row_sets(out_features(module), entry.input.shape[-1]):
                tried[path] = None
                pair = self._row_pair(path, rows, entry)
                if pair is not None and self._agrees(pair):
                    return pair
        if not tried:
            return "no norm, and no earlier linear of a fitting shape, makes their input"
        return f"no norm makes their input, and no earlier linear scales it channel by channel (tried {_listed(tried)})"

    def _row_pair(self, path: str, rows: Rows, entry: _Set) -> Pair | None:
        """The pair in which the consumers' columns follow the rows of a linear; None if they do not."""
        out = out_features(self._block.block.get_submodule(path))
        count = out if rows is None else len(rows)
        scale, trace = self._with_scaled(path, rows, count, out)
        scaled = trace.inputs[entry.consumers[0]][0]
        columns = _channels(entry.input.flatten(0, -2), scaled.flatten(0, -2), scale)
        if columns is None:
            return None
        plain = columns == tuple(range(count))
        return Pair("linear", path, entry.consumers, count, rows, None if plain else columns)

    def _with_scaled(self, path: str, rows: Rows, count: int, out: int) -> tuple[Scale, Trace]:
        """What the block's modules receive when rows of a linear are scaled, each by a factor of its own."""
        if (path, rows) not in self._scaled:
            factors = torch.exp(torch.linspace(-1, 1, count, dtype=torch.float64))
            scale = factors[torch.randperm(count, generator=self._generator)].to(self._trace.inputs[path][0].device)
            trace = Trace()
            self._block.run({path: Change(rows=row_factor(scale, rows, out))}, trace)
            self._scaled[path, rows] = scale, trace
        return self._scaled[path, rows]

    def _agrees(self, pair: Pair) -> bool:
        return self._block.agrees(pair.changes(self._block.block, self._generator))


def row_factor(scale: Scale, rows: Rows, out: int) -> Float64[Tensor, " out"]:
    """A factor for every row of a linear: `scale` at `rows`, 1 elsewhere."""
    if rows is None:
        return scale
    factor = torch.ones(out, dtype=scale.dtype, device=scale.device)
    factor[list(rows)] = scale
    return factor


def out_features(module: nn.Module) -> int:
    """Rows of a linear's weight [out, in]; of a norm, its gains."""
    return _weight(module).shape[-1 if isinstance(module, Conv1D) else 0]


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _row_sets(out: int, columns: int) -> Iterator[Rows]:
    """Rows of a linear with `out` rows that could be the channels of `columns` columns, by the shapes alone.

    Fused linears: q, k and v one after the other (v is last) or head by head; gate and up one after the other.
    """
    if columns % out == 0:
        yield None
    rest = out - columns
    if rest > 0 and rest % 2 == 0 and columns % (rest // 2) == 0:
        yield tuple(range(out - rest // 2, out))
    if out == 2 * columns:
        yield tuple(range(columns, out))
        yield tuple(range(columns))
    if out == 3 * columns:
        for size in (size for size in HEAD_SIZES if columns % size == 0):
            starts = range(2 * size, out, 3 * size)
            yield tuple(row for start in starts for row in range(start, start + size))


def _channels(
    usual: Float64[Tensor, "tokens in"], scaled: Float64[Tensor, "tokens in"], scale: Scale
) -> tuple[int, ...] | None:
    """For each column the channel by whose scale it grew at every token; None if a column did not grow so."""
    energy = usual.square().sum(0)
    ratio = (usual * scaled).sum(0) / energy
    uneven = (scaled - usual * ratio).square().sum(0) > RATIO_TOLERANCE**2 * energy
    order = scale.argsort()
    place = torch.searchsorted(scale[order], ratio.nan_to_num(1.0) * (1 - RATIO_TOLERANCE)).clamp(max=len(scale) - 1)
    channels = order[place]
    silent = energy == 0  # a column that was never active tells nothing
    wrong = uneven | ((ratio / scale[channels] - 1).abs() > 2 * RATIO_TOLERANCE)
    if bool((wrong & ~silent).any()):
        return None
    if bool(silent.any()):
        same = torch.arange(len(ratio), device=ratio.device)
        if len(ratio) != len(scale) or bool((channels != same)[~silent].any()):
            return None
        channels = same
    return tuple(channels.tolist())


def _key(tensor: Tensor) -> tuple[int, int, int]:
    """Tells tensors of one run apart; views that only fold the tokens together are the same."""
    return tensor.data_ptr(), tensor.numel(), tensor.shape[-1] if tensor.dim() else 0


def _around(outer: str, path: str) -> bool:
    return outer in ("", path) or path.startswith(f"{outer}.")


def _listed(paths: Iterable[str]) -> str:
    return ", ".join(paths)
