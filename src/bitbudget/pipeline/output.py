"""The planned output: every tensor that will be in the files, by name and bytes, and why those that stay as they are do so."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from bitbudget.checkpoint.write import Shard, index_json, plan_shards
from bitbudget.errors import InputError
from bitbudget.grids import BF16, Float
from bitbudget.methods.recipe import KEPT
from bitbudget.models.layers import Layer, Passthrough
from bitbudget.models.source import SourceModel
from bitbudget.storage import NATIVE, Choice, Shape, TensorSpec

SMALLEST_GROUP = 16  # a fallback never makes groups smaller than this
DEFAULT_SHARD_BYTES = 5 * 10**9


@dataclass(frozen=True)
class PlannedLayer:
    """One layer and the choice that stores it; `note` says why the choice is not the one asked for."""

    layer: Layer
    choice: Choice
    note: str | None = None

    @property
    def nbytes(self) -> int:
        return sum(spec.nbytes for spec in self.specs())

    def specs(self) -> tuple[TensorSpec, ...]:
        """Tensors in the output file."""
        shape = self.layer.shape
        if self.choice.kept:  # it stays the source's tensor, in the source's orientation
            shape = (shape[1], shape[0]) if self.layer.transposed else shape
            return (TensorSpec(self.layer.tensor, self.layer.dtype, shape),)
        return tuple(spec.under(self.layer.name) for spec in NATIVE.specs(self.choice, shape))


@dataclass(frozen=True)
class OutputPlan:
    """What `quantize` will write, known to the byte before any weight is read."""

    layers: tuple[PlannedLayer, ...]
    kept: tuple[Passthrough, ...]
    shards: tuple[Shard, ...]
    settings: dict[str, Any]

    @property
    def weights_bytes(self) -> int:
        """Σ bytes of all tensors."""
        return sum(shard.tensor_bytes for shard in self.shards)

    @property
    def disk_bytes(self) -> int:
        """Bytes of the safetensors files and their index."""
        return _disk_bytes(self.shards)

    @property
    def stored_bits(self) -> float:
        """8 × stored bytes of all layers over their weights, those kept as they are included."""
        weights = sum(math.prod(planned.layer.shape) for planned in self.layers)
        return 8 * sum(planned.nbytes for planned in self.layers) / weights

    @property
    def code_bits(self) -> float:
        """Σ code bits over the weights of the blocks' linears, as papers count."""
        linears = [planned for planned in self.layers if planned.layer.kind == "linear"] or list(self.layers)
        weights = [math.prod(planned.layer.shape) for planned in linears]
        bits = [planned.choice.nominal_bits(planned.layer.shape) for planned in linears]
        return sum(n * b for n, b in zip(weights, bits, strict=True)) / sum(weights)

    @cached_property
    def by_tensor(self) -> dict[str, PlannedLayer]:
        """Planned layers by their tensor's name in the source."""
        return {planned.layer.tensor: planned for planned in self.layers}

    @property
    def stored_choices(self) -> dict[str, Choice]:
        """Choice of every layer that is not kept as it was."""
        return {planned.layer.name: planned.choice for planned in self.layers if not planned.choice.kept}

    def as_written(self, dtypes: Mapping[str, torch.dtype]) -> "OutputPlan":
        """The plan with the choices of the finished file: bf16 scales or residuals where fp16 could not hold them."""
        layers = tuple(replace(planned, choice=_as_written(planned, dtypes)) for planned in self.layers)
        return replace(self, layers=layers)

    def to_dict(self) -> dict[str, Any]:
        """The readable form that stands in bitbudget.json."""
        return {
            "weights_bytes": self.weights_bytes,
            "disk_bytes": self.disk_bytes,
            "stored_bits": round(self.stored_bits, 6),
            "code_bits": round(self.code_bits, 6),
            "settings": self.settings,
            "layers": {planned.layer.name: _layer_entry(planned) for planned in self.layers},
            "kept": {tensor.tensor: tensor.reason for tensor in self.kept if not tensor.duplicate_of},
            "repeated": {tensor.tensor: tensor.duplicate_of for tensor in self.kept if tensor.duplicate_of},
            "files": {shard.filename: {"bytes": shard.nbytes, "tensors": len(shard.specs)} for shard in self.shards},
        }


def _as_written(planned: PlannedLayer, dtypes: Mapping[str, torch.dtype]) -> Choice:
    choice, name = planned.choice, planned.layer.name
    dense = []
    for prefix, part in zip(choice.dense_names(), choice.dense, strict=True):
        turned = dtypes.get(f"{name}.{prefix}.scale") == torch.bfloat16
        dense.append(replace(part, grid=replace(part.grid, scale=BF16)) if turned else part)
    outliers = choice.outliers
    if outliers and dtypes[f"{name}.outliers.values"] == torch.bfloat16:
        outliers = replace(outliers, values=BF16)
    return choice if choice.kept else replace(choice, dense=tuple(dense), outliers=outliers)


def _layer_entry(planned: PlannedLayer) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "choice": str(planned.choice),
        "kind": planned.layer.kind,
        "block": planned.layer.block,
        "shape": list(planned.layer.shape),
        "bytes": planned.nbytes,
    }
    if planned.layer.transposed:
        entry["transposed"] = True
    return entry | ({"note": planned.note} if planned.note else {})


def uniform_plan(
    source: SourceModel,
    choice: Choice,
    embedding: Choice | None = None,
    head: Choice | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> OutputPlan:
    """One choice for every linear of the blocks; embedding and head by their own (None: as they are).

    Where a group size does not divide a layer, the largest smaller divisor takes its place, and where there is none one
    group a row; the layer's note says so.

    Raises:
        InputError: a tied embedding and head were given different choices, or a choice needs what rounding cannot make.
    """
    for asked in (choice, embedding, head):
        _refuse_maps(asked)
    wanted = {"linear": choice, "embedding": embedding, "head": head, "tied": _tied(source, embedding, head)}
    layers = tuple(plan_layer(layer, wanted[layer.kind]) for layer in source.layers)
    settings = {
        "method": "round to nearest",
        "choice": str(choice),
        "embedding": str(embedding) if embedding else KEPT,
        "head": str(head) if head else KEPT,
        "max_shard_bytes": max_shard_bytes,
    }
    return OutputPlan(layers, source.passthrough, shards_of(source, layers, max_shard_bytes), settings)


def plan_layer(layer: Layer, choice: Choice | None) -> PlannedLayer:
    """A layer with the choice asked for, or with the nearest one that its shape allows and a note."""
    as_it_is = Choice(kept=Float(layer.dtype))
    if choice is None or choice.kept:
        converted = choice is not None and choice != as_it_is
        return PlannedLayer(layer, as_it_is, f"kept in {as_it_is} as it is instead of {choice}" if converted else None)
    misfit = choice.misfit(layer.shape)
    if misfit is None:
        return PlannedLayer(layer, choice)
    fitting = fitted(choice, layer.shape)
    if fitting is None:
        return PlannedLayer(layer, as_it_is, f"{misfit}; kept as it is instead of {choice}")
    return PlannedLayer(layer, fitting, f"{misfit}; {fitting} instead of {choice}")


def fitted(choice: Choice, shape: Shape) -> Choice | None:
    """The choice with each group size replaced by its largest fitting divisor (at least 16), else one group a row; None if
    a part would still not fit."""
    parts = []
    for part, rows in zip(choice.dense, choice.row_counts(shape[0]), strict=True):
        length = (rows, shape[1])[part.grid.grouped_dimension]
        group = part.grid.group
        if group and length % group:
            divisors = (size for size in range(min(group, length), SMALLEST_GROUP - 1, -1) if length % size == 0)
            group = next(divisors, None)
        parts.append(replace(part, grid=replace(part.grid, group=group)))
    result = replace(choice, dense=tuple(parts))
    return result if result.misfit(shape) is None else None


def _refuse_maps(choice: Choice | None) -> None:
    if choice and (choice.input_map or choice.output_map or choice.activation):
        raise InputError(
            f"The choice {choice} asks for an input map, output map or activation format. Those are found by methods that "
            "search them; rounding to nearest stores weights only. Leave out everything from the first '/'."
        )


def _tied(source: SourceModel, embedding: Choice | None, head: Choice | None) -> Choice | None:
    tied = any(layer.kind == "tied" for layer in source.layers)
    if tied and embedding and head and embedding != head:
        raise InputError(
            f"This model's embedding and head are one matrix, so they cannot be stored as {embedding} and as {head}. "
            "Give --embedding only, or the same choice twice."
        )
    return embedding or head


def shards_of(source: SourceModel, layers: Sequence[PlannedLayer], max_shard_bytes: int) -> tuple[Shard, ...]:
    """Output tensors in the order of the source's files, so that reading and writing go forward together."""
    planned = {entry.layer.tensor: entry for entry in layers}
    repeated = {tensor.tensor for tensor in source.passthrough if tensor.duplicate_of}
    units = []
    for name, info in source.checkpoint.tensors.items():
        if name in repeated:  # a second copy of a tied matrix is neither needed nor charged
            continue
        own = planned[name].specs() if name in planned else (TensorSpec(name, info.dtype, info.shape),)
        units.append(tuple(own))
    return plan_shards(units, max_shard_bytes)


def disk_bytes_of(source: SourceModel, layers: Sequence[PlannedLayer], max_shard_bytes: int) -> int:
    """Bytes of the safetensors files and their index."""
    return _disk_bytes(shards_of(source, layers, max_shard_bytes))


def _disk_bytes(shards: Sequence[Shard]) -> int:
    return sum(shard.nbytes for shard in shards) + (len(index_json(shards)) if len(shards) > 1 else 0)
