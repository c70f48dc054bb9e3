"""Folds a scale per channel into the weights on both sides, so that the files' own 16-bit tensors carry it exactly.

A producer with one value per channel (a norm's gain) is divided and rounded to the file's dtype; consumers are then
multiplied by old over new *stored* gain. A producer with more values per channel (rows of a linear, a gain with a bias)
is divided by powers of two, which its dtype holds exactly.
"""

from collections.abc import Iterator, Sequence
from types import MappingProxyType

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from bitbudget.models.layers import Layer
from bitbudget.models.source import SourceModel
from bitbudget.transforms.fold import Factors, Fold
from bitbudget.transforms.pairs import ScaleGroup

TILE_WEIGHTS = 2**22  # of a producer looked at in one go
MANTISSA = 24  # bits of an fp32
LARGEST_SHIFT = 4
FAR = 64

Scale = Float[Tensor, " channels"]
Exponents = Int[Tensor, " channels"]


def fold_scale(source: SourceModel, group: ScaleGroup, scale: Scale) -> Fold:
    """The fold that divides a group's producer by `scale` and multiplies its consumers, as exactly as `Scaling` says."""
    return Scaling(source, group).fold(scale)


class Scaling:
    """One group, with what its producer stores in the file."""

    def __init__(self, source: SourceModel, group: ScaleGroup) -> None:
        self._source = source
        self._group = group
        self._producer = group.producer
        by_name = {layer.name: layer for layer in source.layers}
        self._by_tensor = {layer.tensor: layer for layer in source.layers}
        self._consumers = tuple(by_name[name] for name in group.consumers)
        self._is_gain = group.producer.kind == "norm" and group.producer.bias is None
        self._limits = None if self._is_gain else self._exponent_limits()

    def exact(self, scale: Scale) -> Scale:
        """What the consumers will be multiplied by for a wished scale > 0: fp32, 1 where nothing exact is possible."""
        return self._ratio(scale)[0] if self._is_gain else torch.exp2(self._exponents(scale).float())

    def columns(self, factor: Scale) -> Float[Tensor, " in"]:
        """A factor per channel as one per column of the consumers."""
        return factor if self._group.columns is None else factor[list(self._group.columns)]

    def fold(self, scale: Scale) -> Fold:
        """The fold for a wished scale; it multiplies consumers by `exact(scale)`, and changes nothing where that is 1."""
        factor = self.exact(scale)
        if bool((factor == 1).all()):
            return Fold.none()
        replaced, factors = self._divided(scale, factor)
        consumers = ", ".join(_leaf(layer.name) for layer in self._consumers)
        reasons = dict.fromkeys((*replaced, *factors), f"divided by the scale of {consumers}")
        for layer in self._consumers:
            columns = self.columns(factor)
            factors[layer.tensor] = Factors(columns, None) if layer.transposed else Factors(None, columns)
            reasons[layer.tensor] = f"multiplied by the scale of {_leaf(self._producer.module)}"
        return Fold(MappingProxyType(replaced), MappingProxyType(factors), MappingProxyType(reasons))

    def _divided(self, scale: Scale, factor: Scale) -> tuple[dict[str, Tensor], dict[str, Factors]]:
        """The producer's tensors: replaced, or scaled by rows."""
        if self._is_gain:
            return {self._producer.weight: self._ratio(scale)[1]}, {}
        names = [self._producer.weight, self._producer.bias]
        stored = {name: self._source.checkpoint.read(name) for name in names[self._producer.kind == "linear" :] if name}
        inverse = self._over_rows(1 / factor)
        replaced = {name: (value.float() * inverse).to(value.dtype) for name, value in stored.items()}
        if self._producer.kind == "norm":
            return replaced, {}
        scaled = Factors(None, inverse) if self._layer.transposed else Factors(inverse, None)
        return replaced, {self._producer.weight: scaled}

    @property
    def _layer(self) -> Layer:
        return self._by_tensor[self._producer.weight]

    def _over_rows(self, factor: Scale) -> Float[Tensor, " out"]:
        """A factor per channel as one per row of a linear producer."""
        if self._producer.rows is None:
            return factor
        rows = torch.ones(self._layer.shape[0])
        rows[list(self._producer.rows)] = factor
        return rows

    def _ratio(self, scale: Scale) -> tuple[Scale, Float[Tensor, " channels"]]:
        """Old over new stored gain, and the new gain; a gain that cannot be divided stays, with ratio 1."""
        stored = self._source.checkpoint.read(self._producer.weight)
        one = 1.0 if self._producer.one_plus else 0.0
        gain = stored.double() + one
        divided = (gain / scale.double() - one).to(stored.dtype)
        ratio = (gain / (divided.double() + one)).float()
        usable = torch.isfinite(ratio) & (ratio != 0) & torch.isfinite(divided)
        return torch.where(usable, ratio, 1.0), torch.where(usable, divided, stored)

    def _exponents(self, scale: Scale) -> Exponents:
        """Powers of two next to the scale by which every stored value of a channel can be divided exactly.

        A common factor of all channels changes nothing for the consumers' grids. In fp16, where small weights have no room
        below, channels are therefore shifted together before single ones are clamped.
        """
        assert self._limits is not None
        lowest, highest = self._limits
        wished = torch.log2(scale).round().nan_to_num(0.0, 0.0, 0.0).to(torch.int64)
        shift = int((wished - highest).max().clamp(0, LARGEST_SHIFT))
        return torch.minimum(torch.maximum(wished - shift, lowest), highest)

    def _exponent_limits(self) -> tuple[Exponents, Exponents]:
        """The least and the greatest k such that all values of a channel, divided by 2^k, are still exact."""
        names = (self._producer.weight, self._producer.bias)
        vectors = names[self._producer.kind == "linear" :]
        limits = [_limits(self._source.checkpoint.read(name)[:, None]) for name in vectors if name is not None]
        if self._producer.kind == "linear":
            limits.append(self._limits_of_rows())
        lowest, highest = _narrowest(limits)
        rows = self._producer.rows
        return (lowest, highest) if rows is None else (lowest[list(rows)], highest[list(rows)])

    def _limits_of_rows(self) -> tuple[Exponents, Exponents]:
        """The limits of every row of a linear, looked at in tiles."""
        if self._layer.transposed:
            return _narrowest([_limits(tile.T) for tile in self._tiles()])
        lowest, highest = zip(*map(_limits, self._tiles()), strict=True)
        return torch.cat(lowest), torch.cat(highest)

    def _tiles(self) -> Iterator[Shaped[Tensor, "rows _"]]:
        first, second = self._source.checkpoint.info(self._producer.weight).shape
        step = max(1, TILE_WEIGHTS // second)
        for start in range(0, first, step):
            yield self._source.checkpoint.read(self._producer.weight, start, min(start + step, first))


def _limits(values: Float[Tensor, "channels n"]) -> tuple[Exponents, Exponents]:
    """Per channel the least and the greatest k, both within ± 64, such that no value loses anything when divided by 2^k."""
    info = torch.finfo(values.dtype)
    smallest = int(torch.frexp(torch.tensor(info.tiny * info.eps, dtype=torch.float64)).exponent)
    largest = int(torch.frexp(torch.tensor(info.max, dtype=torch.float64)).exponent)
    mantissa, exponent = torch.frexp(values.float())
    whole = (mantissa * 2**MANTISSA).to(torch.int32)
    last_bit = torch.frexp((whole & -whole).float()).exponent + exponent - MANTISSA
    # Zeros can be halved and doubled for ever.
    halvings = torch.where(values == 0, FAR, last_bit - smallest).amin(1)
    doublings = torch.where(values == 0, FAR, largest - exponent).amin(1)
    finite = torch.isfinite(values).all(1)
    limits = (torch.where(finite, count, 0).clamp(0, FAR).long() for count in (halvings, doublings))
    highest, doubled = limits
    return -doubled, highest


def _narrowest(limits: Sequence[tuple[Exponents, Exponents]]) -> tuple[Exponents, Exponents]:
    """What all of them permit."""
    return torch.stack([low for low, _ in limits]).amax(0), torch.stack([high for _, high in limits]).amin(0)


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
