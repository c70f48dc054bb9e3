"""What a transform changes in the files' tensors.

A norm gain or a bias is replaced by another stored tensor. A matrix gets a factor per row and per column of the tensor
in the file; the folded matrix is fp32, it is what a quantizer then stores.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import torch
from jaxtyping import Float, Int, Shaped
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from bitbudget.checkpoint.write import write_atomic
from bitbudget.errors import InputError
from bitbudget.models.layers import Layer
from bitbudget.models.weights import Weights

REASONS = "reasons"  # the tensor that holds the reasons as JSON: metadata of safetensors comes in no fixed order
REPLACED = "replaced/"
FACTOR = ("factor0/", "factor1/")

Vector = Float[Tensor, " _"]


@dataclass(frozen=True)
class Factors:
    """Factors of dimension 0 and of dimension 1 of a file tensor, fp32; None: all are 1."""

    rows: Vector | None
    columns: Vector | None

    def times(self, other: "Factors") -> "Factors":
        """Both, one after the other."""
        return Factors(_product(self.rows, other.rows), _product(self.columns, other.columns))

    def apply(self, tensor: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """tensor · rows[:, None] · columns[None, :] in fp32, in a fresh tensor."""
        result = tensor.to(torch.float32, copy=True)
        if self.rows is not None:
            result *= self.rows.to(result.device)[:, None]
        if self.columns is not None:
            result *= self.columns.to(result.device)
        return result


@dataclass(frozen=True)
class Fold:
    """Changed tensors by their names in the files; every other tensor stays as it is.

    `replaced` tensors have the dtype and shape of the file's. `reasons` says of each changed tensor why it changed. No
    tensor is both replaced and scaled.
    """

    replaced: Mapping[str, Tensor] = field(default_factory=lambda: MappingProxyType({}))
    factors: Mapping[str, Factors] = field(default_factory=lambda: MappingProxyType({}))
    reasons: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        assert not self.replaced.keys() & self.factors.keys()
        assert self.reasons.keys() == self.replaced.keys() | self.factors.keys()

    @classmethod
    def none(cls) -> "Fold":
        """Changes nothing."""
        return cls()

    def apply(self, name: str, tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """What the tensor called `name` becomes: itself, the stored tensor in its place, or a scaled fp32 matrix."""
        if name in self.replaced:
            return self.replaced[name].to(tensor.device)
        return self.factors[name].apply(tensor) if name in self.factors else tensor

    def column_factor(self, layer: Layer) -> Float[Tensor, " in"] | None:
        """What the layer's input features are multiplied by in its weight; None if they stay as they are."""
        factors = self.factors.get(layer.tensor)
        if factors is None:
            return None
        return factors.rows if layer.transposed else factors.columns

    def then(self, other: "Fold") -> "Fold":
        """Both changes. Factors multiply; a tensor that both change is one that `other` may only scale further.

        Raises ValueError where one of them replaces a tensor that the other changes too: a stored tensor is rounded, so
        the second fold would have to be made from the first one's result.
        """
        twice = (self.replaced.keys() & other.reasons.keys()) | (other.replaced.keys() & self.reasons.keys())
        if twice:
            raise ValueError(f"two folds change {sorted(twice)}, which one of them replaces")
        factors = dict(self.factors)
        reasons = dict(self.reasons)
        for name, reason in other.reasons.items():
            reasons[name] = f"{reasons[name]}; {reason}" if name in reasons else reason
        for name, more in other.factors.items():
            factors[name] = factors[name].times(more) if name in factors else more
        return Fold({**self.replaced, **other.replaced}, factors, reasons)

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of everything that is changed; the same for equal folds, in whatever order they were made."""
        return hashlib.sha256(save(self._tensors())).hexdigest()

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file, in full or not at all. Raises OutputError."""
        text = json.dumps(dict(sorted(self.reasons.items())), ensure_ascii=False).encode()
        content = {**self._tensors(), REASONS: torch.frombuffer(bytearray(text), dtype=torch.uint8)}
        write_atomic(path, save(content))

    @classmethod
    def load(cls, path: str | Path) -> "Fold":
        """What `save` wrote. Raises InputError if the file cannot be read or holds something else."""
        try:
            content = load(Path(path).read_bytes())
            reasons = json.loads(bytes(content.pop(REASONS).tolist()))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise InputError(f"{path} is no readable file of scales ({error}). Search them again.") from error
        replaced = {name.removeprefix(REPLACED): value for name, value in content.items() if name.startswith(REPLACED)}
        rows, columns = (
            {name.removeprefix(prefix): value for name, value in content.items() if name.startswith(prefix)}
            for prefix in FACTOR
        )
        factors = {name: Factors(rows.get(name), columns.get(name)) for name in sorted(rows.keys() | columns.keys())}
        return cls(replaced, factors, reasons)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"{REPLACED}{name}": tensor for name, tensor in self.replaced.items()}
        for name, factors in self.factors.items():
            for prefix, vector in zip(FACTOR, (factors.rows, factors.columns), strict=True):
                if vector is not None:
                    tensors[prefix + name] = vector
        # Consumers share one vector, which the format does not take.
        return {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}


class FoldedWeights:
    """Another source of parameters with a fold applied; results are computed in fp32, then cast."""

    def __init__(self, weights: Weights, fold: Fold) -> None:
        self.weights = weights
        self.fold = fold

    def tensor(self, name: str, dtype: torch.dtype) -> Shaped[Tensor, "..."]:
        """The whole tensor in this dtype, oriented as in the file."""
        if name in self.fold.replaced:
            return self.fold.replaced[name].to(dtype, copy=True)
        if name in self.fold.factors:
            return self.fold.apply(name, self.weights.tensor(name, torch.float32)).to(dtype)
        return self.weights.tensor(name, dtype)

    def rows(self, name: str, ids: Int[Tensor, " n"]) -> Shaped[Tensor, "n width"]:
        """The rows `ids` of a table, in that order; fp32 if the table is scaled."""
        if name in self.fold.replaced:
            return self.fold.replaced[name][ids.cpu()]
        rows = self.weights.rows(name, ids)
        factors = self.fold.factors.get(name)
        if factors is None:
            return rows
        chosen = None if factors.rows is None else factors.rows[ids.to(factors.rows.device)]
        return Factors(chosen, factors.columns).apply(rows)


def _product(one: Vector | None, other: Vector | None) -> Vector | None:
    if one is None or other is None:
        return other if one is None else one
    return one * other
