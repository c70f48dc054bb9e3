"""What the solver may choose from: for every layer its choices, as its shape allows them, with exact costs."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bitbudget.kernels.packed import growth
from bitbudget.methods.recipe import KEPT, Recipe
from bitbudget.models.layers import Layer
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.budgets import BYTES, CODE_BITS, DIMENSIONS, DISK, MEMORY, passthrough_bytes
from bitbudget.pipeline.output import PlannedLayer, plan_layer
from bitbudget.storage import Choice, TensorSpec


@dataclass(frozen=True)
class Offer:
    """A layer and the ways to store it, each once; as it is, if that is one of them, comes first."""

    layer: Layer
    planned: tuple[PlannedLayer, ...]

    @property
    def stored(self) -> tuple[PlannedLayer, ...]:
        """Those that are not the layer as it is."""
        return tuple(planned for planned in self.planned if not planned.choice.kept)

    def choice(self, text: str) -> PlannedLayer | None:
        """The one with this text."""
        return next((planned for planned in self.planned if str(planned.choice) == text), None)


def offers(source: SourceModel, recipe: Recipe) -> tuple[Offer, ...]:
    """An offer for every layer. A layer that no choice fits is offered as it is, with the reason."""
    return tuple(_offer(layer, recipe.choices if layer.kind == "linear" else (KEPT, *recipe.tables)) for layer in source.layers)


def _offer(layer: Layer, texts: Sequence[str]) -> Offer:
    found: dict[str, PlannedLayer] = {}
    unfit: list[PlannedLayer] = []
    for text in texts:
        planned = plan_layer(layer, None if text == KEPT else Choice.parse(text))
        if planned.choice.kept and text != KEPT:
            unfit.append(planned)
        else:
            found.setdefault(str(planned.choice), planned)
    return Offer(layer, tuple(found.values()) or tuple(unfit[:1]))


@dataclass(frozen=True)
class Prices:
    """What layers cost. digits: of the largest offset in a file. packed: whether weights are packed where the model runs; if not,
    they are held as they are stored.
    """

    digits: int
    packed: bool = True

    @classmethod
    def of(cls, source: SourceModel, packed: bool = True) -> "Prices":
        return cls(len(str(sum(info.nbytes for info in source.checkpoint.tensors.values()))), packed)

    def costs(self, planned: PlannedLayer) -> tuple[int, ...]:
        """In the order of `DIMENSIONS`. Code bits of embedding and head do not count (papers leave them out)."""
        code_bits = 0
        if planned.layer.kind == "linear":
            code_bits = round(planned.choice.nominal_bits(planned.layer.shape) * math.prod(planned.layer.shape))
        found = {
            BYTES: planned.nbytes,
            CODE_BITS: code_bits,
            DISK: planned.nbytes + _named(planned.specs(), self.digits),
            MEMORY: planned.nbytes + (packing({planned.layer: planned.choice}) if self.packed else 0),
        }
        return tuple(found[name] for name in DIMENSIONS)

    def cost(self, planned: PlannedLayer, dimension: str) -> int:
        """In one of them."""
        return self.costs(planned)[DIMENSIONS.index(dimension)]


def packing(choices: Mapping[Layer, Choice]) -> int:
    """Bytes that layers take beyond their stored tensors once they are packed for the CPU kernels, at most."""
    multiplying = ((layer, choice) for layer, choice in choices.items() if layer.kind != "embedding" and not choice.kept)
    return sum(growth(choice, layer.shape) for layer, choice in multiplying)


def disk_constant(source: SourceModel, max_shard_bytes: int) -> int:
    """Bytes of the files besides the layers: tensors written as they are, headers' frames. An index is not counted."""
    kept = [entry.tensor for entry in source.passthrough if not entry.duplicate_of]
    infos = [source.checkpoint.tensors[name] for name in kept]
    total = sum(info.nbytes for info in source.checkpoint.tensors.values())
    entries = _named([TensorSpec(info.name, info.dtype, info.shape) for info in infos], len(str(total)))
    files = 1 + 2 * total // max_shard_bytes  # a file is at least half full, the last excepted
    return passthrough_bytes(source) + entries + 64 * files + 128


def _named(specs: Sequence[TensorSpec], digits: int) -> int:
    """Most bytes that naming these tensors takes in a header, with offsets of so many digits."""
    entry = len(json.dumps({"dtype": "BF16", "shape": [], "data_offsets": []}, separators=(",", ":"))) + 2 * digits + 5
    return sum(
        len(json.dumps(spec.name, ensure_ascii=False).encode()) + entry + len(str(list(spec.shape))) for spec in specs
    )


def chosen(every: Sequence[Offer], layers: Mapping[str, str]) -> tuple[PlannedLayer, ...]:
    """The planned layers of a plan (layer -> choice's text), in the model's order; texts are read anew where they are no offer."""
    return tuple(
        offer.choice(layers[offer.layer.name]) or plan_layer(offer.layer, Choice.parse(layers[offer.layer.name]))
        for offer in every
    )
