"""Which modules of a model hold the stored layers of a checkpoint: put there before loading, checked before and after.

The names of the file are not those of the model (no prefix of the base model, older names), so every name goes through
transformers' own renaming. Nothing is left to its report of missing tensors, which is only a warning.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from bitbudget.checkpoint.header import TensorInfo, read_header
from bitbudget.checkpoint.native import NativeConfig
from bitbudget.errors import InputError
from bitbudget.integrations.replacement import replacement, shape_of
from bitbudget.integrations.ties import Tie, release, tie_heads, ties_of
from bitbudget.kernels.linear import QuantModule
from bitbudget.kernels.tensors import StoredTensors
from bitbudget.models.names import Renamer
from bitbudget.storage import NATIVE, Choice

GUARD = "weight"  # the empty tensor of every stored layer


@dataclass(frozen=True)
class Slot:
    """A stored layer, named as in the file, and the path of the module that holds it."""

    layer: str
    path: str
    choice: Choice


@dataclass(frozen=True)
class Placement:
    """All slots of a model. `renamings`: for stored tensors that transformers' own do not bring to their slot."""

    slots: tuple[Slot, ...]
    renamings: dict[str, str]

    def finish(self, model: PreTrainedModel) -> None:
        """Check that every stored tensor was filled (InputError names the layers where not), and undo casts of them.

        transformers keeps whole modules of some models in fp32; that is a cast up, so nothing is lost.
        """
        tensors = {slot.layer: _stored_tensors(model.get_submodule(slot.path)) for slot in self.slots}
        flags = {name: all(_is_filled(part, leaf) for part, leaf, _ in found) for name, found in tensors.items()}
        empty = [name for name, filled in flags.items() if not filled]
        # A transformers that does not flag what it fills says nothing; the file was checked before in any case.
        if empty and len(empty) < len(flags):
            raise InputError(f"transformers left {len(empty)} stored layers without their tensors: {', '.join(empty)}.")
        for found in tensors.values():
            for part, leaf, dtype in found:
                part._buffers[leaf] = part.get_buffer(leaf).to(dtype)

    def names_when_saved(self, model: PreTrainedModel) -> dict[str, str]:
        """Layer name now -> in the file that `save_pretrained` is going to write."""
        saved = {}
        for slot in self.slots:
            guard = f"{slot.path}.{GUARD}"
            written = revert_weight_conversion(model, {guard: torch.empty(0)})  # only the name matters
            saved[slot.layer] = next(iter(written)).removesuffix(f".{GUARD}")
        return saved

    def with_names(self, names: Mapping[str, str]) -> "Placement":
        """The same slots with other layer names."""
        return replace(self, slots=tuple(replace(slot, layer=names.get(slot.layer, slot.layer)) for slot in self.slots))


def place(model: PreTrainedModel, config: NativeConfig, files: Sequence[str] | None) -> Placement:
    """Put a module without data where every stored layer of the files belongs.

    model: as its class builds it, on the meta device; changed. files: its safetensors files.

    Raises:
        InputError: naming the layer: it has no place in the model, its tensors are missing or do not fit, or its module
            computes what a stored weight cannot. Or nothing is stored at all.
    """
    tensors = _headers(files)
    renamer = Renamer(model)
    slots = _slots(model, config, renamer)
    given = {renamer.target(name)[0] for name in tensors}
    ties = ties_of(model)
    slots, heads = _settle(slots, ties, given)
    release(model, ties, {slot.path for slot in slots})
    for slot in slots:
        _swap(model, slot)
    tie_heads(model, heads)
    # So that no device map cuts a weight in two.
    model._no_split_modules = {*(model._no_split_modules or ()), "QuantLinear", "QuantEmbedding"}
    return Placement(slots, _check_files(model, slots, tensors))


def _headers(files: Sequence[str] | None) -> dict[str, TensorInfo]:
    if not files:
        raise InputError(
            "A bitbudget checkpoint is loaded from its safetensors files, and from_pretrained was called without any "
            "(with a state_dict?). Give it the checkpoint's folder."
        )
    other = [file for file in files if not str(file).endswith(".safetensors")]
    if other:
        raise InputError(f"{other[0]} is no safetensors file; bitbudget reads weights from no other kind.")
    return {name: info for file in files for name, info in read_header(Path(file)).items()}


def _slots(model: PreTrainedModel, config: NativeConfig, renamer: Renamer) -> tuple[Slot, ...]:
    """A slot for every stored layer; without the head's for a class that has no head (AutoModel)."""
    slots, absent = [], []
    for layer, choice in config.layers.items():
        if choice.kept:
            continue
        target, converter = renamer.target(f"{layer}.{GUARD}")
        if target in renamer.state and converter is None:
            slots.append(Slot(layer, target.removesuffix(f".{GUARD}"), choice))
        else:
            absent.append(layer)
    allowed = 0 if model.get_output_embeddings() is not None else 1
    if len(absent) > allowed:
        raise InputError(
            f"The quantized layer {absent[0]} of this checkpoint has no place in the model class "
            f"{type(model).__name__} of transformers ({len(absent)} of {len(config.layers)} layers have none). "
            "config.json does not fit the weights, or another version of transformers names its modules differently."
        )
    if not slots:
        raise InputError("config.json says quant_method bitbudget, but names no quantized layer; it is damaged.")
    return tuple(slots)


def _settle(slots: tuple[Slot, ...], ties: Sequence[Tie], given: set[str]) -> tuple[tuple[Slot, ...], list[Tie]]:
    """Slots after ties, and the ties whose head is to use the embedding's stored weight.

    A tie holds if the file gives one of the two. Where that is the head's name, the embedding still owns the tensors.
    """
    by_path = {slot.path: slot for slot in slots}
    heads = []
    for tie in ties:
        has_head, has_embedding = tie.head in by_path, tie.embedding in by_path
        if has_embedding and not has_head and f"{tie.head}.{GUARD}" not in given:
            heads.append(tie)
        if has_head and not has_embedding and f"{tie.embedding}.{GUARD}" not in given:
            by_path[tie.embedding] = replace(by_path.pop(tie.head), path=tie.embedding)
            heads.append(tie)
    return tuple(by_path.values()), heads


def _swap(model: PreTrainedModel, slot: Slot) -> None:
    old = model.get_submodule(slot.path)
    shape = shape_of(old)
    if shape is None:
        raise InputError(
            f"The quantized layer {slot.layer} is a {type(old).__name__} in the model class {type(model).__name__}, "
            "neither a linear nor an embedding, so its weight cannot be stored in codes. config.json does not fit the "
            "weights."
        )
    misfit = slot.choice.misfit(shape)
    if misfit:
        raise InputError(
            f"The layer {slot.layer} {list(shape)} cannot be stored as {slot.choice}: {misfit}. config.json does not "
            "fit the weights, or is damaged."
        )
    parent, _, leaf = slot.path.rpartition(".")
    try:
        setattr(model.get_submodule(parent), leaf, replacement(old, slot.choice, shape))
    except InputError as error:
        raise InputError(f"Layer {slot.layer}: {error}") from error


def _check_files(model: PreTrainedModel, slots: Sequence[Slot], tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Check the stored tensors of the files; returns the renamings that transformers needs besides its own."""
    renamer = Renamer(model)
    by_target = {renamer.target(name)[0]: info for name, info in tensors.items()}
    renamings = {}
    for slot in slots:
        module = model.get_submodule(slot.path)
        for spec in NATIVE.specs(slot.choice, module.shape):
            target = f"{slot.path}.{spec.name}"
            info = by_target.get(target)
            if info is None and f"{slot.layer}.{spec.name}" in tensors:
                info = tensors[f"{slot.layer}.{spec.name}"]
                renamings[renamer.renamed(info.name)] = target
            _check_tensor(slot, spec.name, spec.dtype, spec.shape, info)
    _refuse_strangers(model, slots, tensors)
    return renamings


def _check_tensor(slot: Slot, name: str, dtype: torch.dtype, shape: tuple[int, ...], info: TensorInfo | None) -> None:
    if info is None:
        raise InputError(
            f"The layer {slot.layer} is stored as {slot.choice}, but its tensor {slot.layer}.{name} is in none of the "
            "files. A shard is missing, or config.json belongs to other weights."
        )
    # The guard has the dtype that the model was saved in.
    if info.shape != shape or (info.dtype != dtype and name != GUARD):
        raise InputError(
            f"{info.file}: the tensor {info.name} of the layer {slot.layer} is {info.dtype} {list(info.shape)}; stored "
            f"as {slot.choice} it has to be {dtype} {list(shape)}. config.json belongs to other weights, or one of "
            "them is damaged."
        )


def _refuse_strangers(model: PreTrainedModel, slots: Sequence[Slot], tensors: Mapping[str, TensorInfo]) -> None:
    """Raise InputError for a tensor that stands under a stored layer and that its choice does not know."""
    known = {slot.layer: {spec.name for spec in NATIVE.specs(slot.choice, _shape(model, slot))} for slot in slots}
    for name, info in tensors.items():
        for end in (place for place, letter in enumerate(name) if letter == "."):
            layer, rest = name[:end], name[end + 1 :]
            if layer in known and rest not in known[layer] and rest != "bias":
                raise InputError(
                    f"{info.file} holds {name}, which is no tensor of a layer stored as config.json says. The two do "
                    "not belong together."
                )


def _shape(model: PreTrainedModel, slot: Slot) -> tuple[int, int]:
    module = model.get_submodule(slot.path)
    assert isinstance(module, QuantModule)
    return module.shape


def _stored_tensors(module: nn.Module) -> list[tuple[StoredTensors, str, torch.dtype]]:
    """Part, name and stored dtype of every stored tensor of a module."""
    assert isinstance(module, QuantModule)
    dtypes = {spec.name: spec.dtype for spec in NATIVE.specs(module.choice, module.shape)}
    return [
        (part, leaf, dtypes[f"{group}.{leaf}"])
        for group, part in module.named_children()
        if isinstance(part, StoredTensors)
        for leaf, _ in part.named_buffers()
    ]


def _is_filled(part: StoredTensors, leaf: str) -> bool:
    return getattr(part.get_buffer(leaf), "_is_hf_initialized", False)
