"""A model on disk, understood from its config and headers: no weight is read to open it."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from bitbudget.checkpoint.read import Checkpoint
from bitbudget.errors import InputError
from bitbudget.models.devices import compute_dtype
from bitbudget.models.folder import local_folder, read_config
from bitbudget.models.layers import Layer, Passthrough, Places, classify, find_places
from bitbudget.models.names import ParameterMap, map_parameters
from bitbudget.models.skeleton import build_skeleton

__all__ = ["Layer", "Passthrough", "SourceModel"]

FLOATS = frozenset({torch.float32, torch.float16, torch.bfloat16, torch.float64})
COMPARE_BYTES = 64 << 20  # two stored copies of a tied matrix are compared in row tiles of this size

Described = tuple[tuple[int, ...] | None, torch.dtype]  # shape and dtype; the shape of a stored weight is the model's


@dataclass(frozen=True)
class SourceModel:
    """A decoder-only transformers model in a folder.

    `model` is the whole `…ForCausalLM` with parameters on the meta device and real buffers; it is never filled or run,
    so it can be shared (`skeleton` gives a fresh one to fill). `parameters` maps file names to the model's names.
    """

    folder: Path
    config: PreTrainedConfig
    checkpoint: Checkpoint
    model: PreTrainedModel
    layers: tuple[Layer, ...]
    passthrough: tuple[Passthrough, ...]
    parameters: ParameterMap
    places: Places
    attn_implementation: str | None
    trust_remote_code: bool

    @classmethod
    def open(
        cls,
        folder_or_hub_id: str | Path,
        trust_remote_code: bool = False,
        attn_implementation: str | None = None,
        allow_native: bool = False,
    ) -> "SourceModel":
        """The model in a folder, or of a hub id (downloaded if it is not there yet).

        `allow_native` also opens a folder written by bitbudget: its layers then stand for the stored weights, under the
        names they had in the original. Raises InputError for every model that cannot be read, with the reason.
        """
        folder = local_folder(folder_or_hub_id)
        config = read_config(folder, trust_remote_code, allow_native)
        checkpoint = Checkpoint.open(folder)
        model = build_skeleton(config, torch.float32, attn_implementation, trust_remote_code)
        tensors = _logical_tensors(folder, checkpoint, compute_dtype(torch.device("meta"), config))
        places = find_places(model)
        shapes = {name: shape for name, (shape, _) in tensors.items()}
        parameters = map_parameters(model, shapes, partial(_equal, checkpoint))
        _refuse_integers(folder, tensors, parameters)
        layers, passthrough = classify(model, places, parameters, {name: dtype for name, (_, dtype) in tensors.items()})
        return cls(
            folder,
            config,
            checkpoint,
            model,
            layers,
            passthrough,
            parameters,
            places,
            attn_implementation,
            trust_remote_code,
        )

    @property
    def block_count(self) -> int:
        """Number of decoder blocks."""
        return len(self.model.get_submodule(self.places.blocks))

    @property
    def is_native(self) -> bool:
        """Whether bitbudget wrote the folder: the only quantized one that can be opened."""
        return _quantization(self.folder) is not None

    @property
    def dtype(self) -> torch.dtype:
        """In which it runs, as transformers' `dtype="auto"` says: the config's, else that of most bytes of the files."""
        named = getattr(self.config, "dtype", None)
        if isinstance(named, torch.dtype) and named.is_floating_point:
            return named
        held: Counter[torch.dtype] = Counter()
        for info in self.checkpoint.tensors.values():
            if info.dtype.is_floating_point:
                held[info.dtype] += info.nbytes
        return held.most_common(1)[0][0]

    def skeleton(self, dtype: torch.dtype) -> PreTrainedModel:
        """A fresh model of the same class as transformers would build it to load in `dtype`."""
        return build_skeleton(self.config, dtype, self.attn_implementation, self.trust_remote_code)


def _quantization(folder: Path) -> dict[str, Any] | None:
    """What config.json says of stored layers."""
    return json.loads((folder / "config.json").read_text("utf-8")).get("quantization_config") or None


def _logical_tensors(folder: Path, checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, Described]:
    """Shapes and dtypes by name; in a folder of ours the parts of a stored weight count as the tensor they make."""
    tensors: dict[str, Described] = {name: (info.shape, info.dtype) for name, info in checkpoint.tensors.items()}
    quantization = _quantization(folder)
    if quantization is None:
        return tensors
    stored = quantization.get("layers")
    if not isinstance(stored, dict):
        raise InputError(
            f"{folder / 'config.json'}: bitbudget's quantization_config has no `layers`; the file is damaged."
        )
    bases = {f"{layer}." for layer in stored}
    for name in list(tensors):
        owners = [name[: end + 1] for end, letter in enumerate(name) if letter == "."]
        if not name.endswith(".bias") and any(owner in bases for owner in owners):
            del tensors[name]
    return tensors | {f"{layer}.weight": (None, dtype) for layer in stored}


def _refuse_integers(folder: Path, tensors: Mapping[str, Described], parameters: ParameterMap) -> None:
    for name, (_, dtype) in tensors.items():
        if name in parameters.recipe_of and name.endswith(".weight") and dtype not in FLOATS:
            raise InputError(
                f"{folder}: the weight {name!r} has dtype {str(dtype).removeprefix('torch.')}. It is already "
                "quantized, although config.json does not say so. Start from the original 16-bit or 32-bit model."
            )


def _equal(checkpoint: Checkpoint, one: str, other: str) -> bool:
    """Whether two tensors hold the same values; read in tiles of rows, and only up to the first difference.

    A stored weight of ours equals nothing: two equal tensors are written as one.
    """
    if one not in checkpoint.tensors or other not in checkpoint.tensors:
        return False
    first, second = checkpoint.info(one), checkpoint.info(other)
    if first.shape != second.shape:
        return False
    if not first.shape or not first.nbytes:
        return torch.equal(checkpoint.read(one).double(), checkpoint.read(other).double())
    tile = max(1, COMPARE_BYTES * first.shape[0] // first.nbytes)
    return all(
        torch.equal(
            checkpoint.read(one, start, min(start + tile, first.shape[0])).float(),
            checkpoint.read(other, start, min(start + tile, first.shape[0])).float(),
        )
        for start in range(0, first.shape[0], tile)
    )
