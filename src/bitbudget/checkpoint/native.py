"""The native format: what `quantization_config` says, and stored weights read back from a finished folder.

`docs/format.md` describes it for readers without this code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bitbudget.checkpoint.read import Checkpoint
from bitbudget.errors import InputError
from bitbudget.storage import NATIVE, Choice, Shape, StoredWeight

QUANT_METHOD = "bitbudget"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class NativeConfig:
    """Which layer is stored by which choice; every layer that is not named stays as it was."""

    layers: dict[str, Choice]

    def to_dict(self) -> dict[str, Any]:
        """The value of `quantization_config`: choices once each, in order of first use."""
        texts = list(dict.fromkeys(str(choice) for choice in self.layers.values()))
        place = {text: index for index, text in enumerate(texts)}
        return {
            "quant_method": QUANT_METHOD,
            "format_version": FORMAT_VERSION,
            "choices": texts,
            "layers": {name: place[str(choice)] for name, choice in self.layers.items()},
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "NativeConfig":
        """Read a `quantization_config`.

        Raises:
            InputError: another method, a newer format, a choice this version does not know, or a damaged map.
        """
        if stored.get("quant_method") != QUANT_METHOD:
            raise InputError(
                f"quantization_config is of quant_method {stored.get('quant_method')!r}, not {QUANT_METHOD!r}."
            )
        version = stored.get("format_version")
        if type(version) is not int or version < 1:  # true and false are no versions
            raise InputError(f"quantization_config has no valid format_version (found {version!r}).")
        if version > FORMAT_VERSION:
            raise InputError(
                f"This checkpoint is of format version {version}; this bitbudget reads versions up to "
                f"{FORMAT_VERSION}. Update bitbudget: pip install -U bitbudget."
            )
        texts, layers = stored.get("choices"), stored.get("layers")
        if not isinstance(texts, list) or not isinstance(layers, dict):
            raise InputError("quantization_config lacks its lists `choices` and `layers`; config.json is damaged.")
        choices = [Choice.parse(str(text)) for text in texts]
        for name, index in layers.items():
            if type(index) is not int or not 0 <= index < len(choices):
                raise InputError(
                    f"quantization_config gives layer {name} the choice {index!r} of {len(choices)} choices."
                )
            if choices[index].kept:
                raise InputError(
                    f"quantization_config lists layer {name} as {choices[index]}; layers that keep their floats are "
                    "not listed. config.json is damaged."
                )
        return cls({name: choices[index] for name, index in layers.items()})


def stored_names(layer: str, choice: Choice, shape: Shape) -> tuple[str, ...]:
    """Names in the file of the tensors of a layer."""
    return tuple(f"{layer}.{spec.name}" for spec in NATIVE.specs(choice, shape))


class NativeWeights:
    """Parameters of a finished folder under the names of the original: stored weights are decoded when asked for.

    shapes: (out, in) of every stored layer; transposed: layers whose original tensor was [in, out].
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: NativeConfig,
        shapes: Mapping[str, Shape],
        transposed: frozenset[str] = frozenset(),
    ) -> None:
        self.checkpoint = checkpoint
        self.config = config
        self.shapes = shapes
        self.transposed = transposed

    def stored(self, layer: str) -> StoredWeight:
        """One stored weight; InputError names the layer if a tensor is missing or of the wrong kind."""
        choice, shape = self.config.layers[layer], self.shapes[layer]
        names = [name for name in stored_names(layer, choice, shape) if name in self.checkpoint.tensors]
        tensors = {name.removeprefix(f"{layer}."): self.checkpoint.read(name) for name in names}
        try:
            return StoredWeight.from_tensors(choice, shape, tensors)
        except InputError as error:
            raise InputError(f"{self.checkpoint.folder}, layer {layer}: {error}") from error

    def tensor(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """The whole tensor in a dtype; a stored weight decoded in tiles, oriented as in the original."""
        layer = name.removesuffix(".weight")
        if layer not in self.config.layers:
            return self.checkpoint.read_as(name, dtype)
        weight = self._matrix(layer)
        decoded = torch.empty(weight.shape, dtype=dtype)
        for rows in weight.tiles():
            decoded[rows] = weight.dequantize(rows)
        return decoded.T if layer in self.transposed else decoded

    def rows(self, name: str, ids: Int[Tensor, " n"]) -> Float[Tensor, "n width"]:
        """Rows of a table, in the order of `ids`."""
        layer = name.removesuffix(".weight")
        if layer not in self.config.layers:
            return self.checkpoint.read_rows(name, ids)
        return self._matrix(layer).dequantize(ids.to(torch.int64))

    def _matrix(self, layer: str) -> StoredWeight:
        """A stored weight that a plain matrix stands for."""
        weight = self.stored(layer)
        if weight.input_map or weight.output_map or weight.choice.activation:
            raise InputError(
                f"{self.checkpoint.folder}: the layer {layer} is stored as {weight.choice}. With an input map, output map or "
                "activation format it is no plain matrix, and running it block by block is not built yet."
            )
        return weight
