"""Checks on a finished folder that need no model run. Each returns its problems, every one naming the tensor or file."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitbudget.checkpoint.native import NativeConfig, NativeWeights
from bitbudget.checkpoint.read import Checkpoint
from bitbudget.models.layers import UNUSED, Layer
from bitbudget.models.source import SourceModel
from bitbudget.storage import NATIVE, DensePart, OutlierPart, StoredWeight, TensorSpec

SHOWN = 5
TILE_BYTES = 16 * 2**20  # of a tensor that is looked through


@dataclass(frozen=True)
class Folder:
    """A finished folder, opened: its record (bitbudget.json), its tensors, and how its layers are stored."""

    path: Path
    record: dict[str, Any]
    checkpoint: Checkpoint
    config: NativeConfig
    source: SourceModel

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """Layers by name, as the model class sees them."""
        return {layer.name: layer for layer in self.source.layers}

    @cached_property
    def weights(self) -> NativeWeights:
        """Decoded parameters under the names of the original."""
        shapes = {name: layer.shape for name, layer in self.layers.items()}
        transposed = frozenset(name for name, layer in self.layers.items() if layer.transposed)
        return NativeWeights(self.checkpoint, self.config, shapes, transposed)

    @cached_property
    def expected(self) -> dict[str, TensorSpec]:
        """Every tensor that the record promises, by name. Dtypes and shapes of kept tensors come from the file itself."""
        specs: dict[str, TensorSpec] = {}
        for name, entry in self.record["output"]["layers"].items():
            if name in self.config.layers:
                shape = (entry["shape"][0], entry["shape"][1])
                for spec in NATIVE.specs(self.config.layers[name], shape):
                    specs[f"{name}.{spec.name}"] = spec.under(name)
        return specs


def complete(folder: Folder) -> Iterator[str]:
    """Every tensor of the record is in the file its plan says, with its dtype and shape, and none besides."""
    promised, found = folder.record["tensors"].keys(), folder.checkpoint.tensors
    for name in promised - found.keys():
        yield f"the tensor {name} is missing"
    for name in found.keys() - promised:
        yield f"the tensor {name} is in {found[name].file.name}, but the record does not know it"
    for name, spec in folder.expected.items():
        info = found.get(name)
        if info and (info.dtype != spec.dtype or info.shape != spec.shape):
            yield f"the tensor {name} is {info.dtype} {list(info.shape)} instead of {spec.dtype} {list(spec.shape)}"
    planned = {name: entry["choice"] for name, entry in folder.record["output"]["layers"].items()}
    for name, choice in folder.config.layers.items():
        if planned.get(name) != str(choice):
            yield f"config.json stores the layer {name} as {choice}, the plan as {planned.get(name)}"


def sizes(folder: Folder) -> Iterator[str]:
    """Bytes of the tensors and of the files equal what was predicted before anything was written."""
    plan = folder.record["output"]
    total = sum(info.nbytes for info in folder.checkpoint.tensors.values())
    if total != plan["weights_bytes"]:
        yield f"the tensors take {total:,} bytes, predicted were {plan['weights_bytes']:,}"
    for name, entry in plan["files"].items():
        path = folder.path / name
        found = path.stat().st_size if path.is_file() else 0
        if found != entry["bytes"]:
            yield f"the file {name} takes {found:,} bytes, predicted were {entry['bytes']:,}"
    on_disk = [*folder.checkpoint.files, *folder.path.glob("*.index.json")]
    if sum(path.stat().st_size for path in on_disk) != plan["disk_bytes"]:
        yield f"weight files and index take {sum(path.stat().st_size for path in on_disk):,} bytes, not {plan['disk_bytes']:,}"


def hashes(folder: Folder) -> Iterator[str]:
    """The bytes of every tensor are those that were written."""
    for name, promised in folder.record["tensors"].items():
        if name in folder.checkpoint.tensors and folder.checkpoint.sha256(name) != promised:
            yield f"the tensor {name} is not what was written (its SHA-256 differs)"


def values(folder: Folder) -> Iterator[str]:
    """No NaN or infinity in any tensor of the model, no scale that is zero, every index legal."""
    unused = {name for name, reason in folder.record["output"]["kept"].items() if reason == UNUSED}
    for name, info in folder.checkpoint.tensors.items():
        if info.dtype.is_floating_point and name not in unused and not _finite(folder.checkpoint, name):
            yield f"the tensor {name} holds NaN or infinity"
    for name in folder.config.layers:
        weight = folder.weights.stored(name)
        yield from (f"the layer {name} ({weight.choice}): {problem}" for problem in _illegal(weight))


def _finite(checkpoint: Checkpoint, name: str) -> bool:
    """Read in tiles of rows: an embedding may be larger than everything else that is in memory at this time."""
    info = checkpoint.tensors[name]
    if not info.shape or not info.nbytes:
        return bool(torch.isfinite(checkpoint.read(name)).all())
    step = max(1, TILE_BYTES * info.shape[0] // info.nbytes)
    tiles = (checkpoint.read(name, at, min(at + step, info.shape[0])) for at in range(0, info.shape[0], step))
    return all(bool(torch.isfinite(tile).all()) for tile in tiles)


def _illegal(weight: StoredWeight) -> Iterator[str]:
    rows_taken = torch.zeros(weight.shape[0], dtype=torch.int64)
    for name, part in zip(weight.names, weight.parts, strict=True):
        if isinstance(part, OutlierPart):
            yield from _illegal_csr(part.stored, weight.shape)
        elif isinstance(part, DensePart):
            yield from _illegal_scales(name, part)
            index = part.stored.get("rows", torch.arange(weight.shape[0])).to(torch.int64)
            if bool((index >= weight.shape[0]).any()) or bool((index.diff() <= 0).any()):
                yield f"{name}.rows is not an ascending list of rows below {weight.shape[0]}"
            else:
                rows_taken[index] += 1
    if bool((rows_taken != 1).any()):
        row = int((rows_taken != 1).nonzero()[0])
        yield f"row {row} is stored {int(rows_taken[row])} times instead of once"


def _illegal_scales(name: str, part: DensePart) -> Iterator[str]:
    table = part.format.grid.table_shape(part.shape)
    rows = torch.arange(table[0]) * (part.format.grid.group_length(part.shape) if part.format.grid.axis == "out" else 1)
    scale = part.parameters(rows).scale
    if bool((scale <= 0).any()):
        where = (scale <= 0).nonzero()[0].tolist()
        yield f"{name}.scale has {int((scale <= 0).sum())} scales that are zero or negative, the first at {where}"


def _illegal_csr(stored: dict[str, Tensor], shape: tuple[int, int]) -> Iterator[str]:
    pointers, columns = stored["row_pointers"].to(torch.int64), stored["columns"].to(torch.int64)
    if int(pointers[0]) != 0 or int(pointers[-1]) != len(columns) or bool((pointers.diff() < 0).any()):
        yield f"outliers.row_pointers do not ascend from 0 to {len(columns)}"
        return
    if bool((columns >= shape[1]).any()) or bool((columns < 0).any()):
        yield f"outliers.columns points outside the {shape[1]} columns"
    row = torch.repeat_interleave(torch.arange(shape[0]), pointers.diff())
    same_row = row[1:] == row[:-1]
    if bool((same_row & (columns.diff() <= 0)).any()):
        yield "outliers.columns do not ascend within a row"


def accounted(folder: Folder, original: SourceModel) -> Iterator[str]:
    """Every tensor of the original is stored, kept with the same bytes, or left out for a reason that the plan gives."""
    plan, found = folder.record["output"], folder.checkpoint.tensors
    of_layers = {layer.tensor: layer.name for layer in original.layers}
    scaled = plan.get("scaled", {})
    for name, info in original.checkpoint.tensors.items():
        stored = of_layers.get(name) in folder.config.layers
        if stored or name in scaled:
            if original.checkpoint.sha256(name) != folder.record["source"]["tensors"].get(name):
                yield f"the stored {name} was made from another weight than the original's"
        elif name in plan["repeated"] and name not in found:
            continue
        elif name not in found:
            yield f"the original's tensor {name} is neither stored nor kept"
        elif found[name].dtype != info.dtype or found[name].shape != info.shape:
            yield f"the kept tensor {name} has another dtype or shape than the original's"
        elif folder.checkpoint.sha256(name) != original.checkpoint.sha256(name):
            yield f"the kept tensor {name} is not the original's, bit for bit"


CHECKS: dict[str, Callable[[Folder], Iterator[str]]] = {
    "every tensor present": complete,
    "bytes as predicted": sizes,
    "no NaN, infinity or zero scale": values,
    "hashes": hashes,
}
