"""Which tensors of the files are layers, and why every other one passes through as it is.

Everything is read off the model: its list of decoder blocks, its input embedding and output head, the kinds of its
modules.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bitbudget.errors import InputError
from bitbudget.models.names import ParameterMap

Kind = Literal["linear", "embedding", "head", "tied"]
EXPERT_LIST = "experts"  # how transformers calls a list of experts that are modules of their own
EXPERTS = "mixture-of-experts tensor: experts are not quantized yet"
ROUTER = "router or gate of a mixture of experts"
UNUSED = "not used by the model class (another task's head, multi-token prediction, old buffers)"
POSITION_SLACK = 8  # OPT's table of positions has two rows more than positions


@dataclass(frozen=True)
class Layer:
    """One matrix that can be stored by a choice.

    `name` is its tensor's name in the file without `.weight`, `module` its path in the model. `shape` is (out, in) even
    where the file holds [in, out] (`transposed`). `bias` names the bias tensor of the file. Input embedding and output
    head that are the same matrix are one layer of kind `tied`.
    """

    name: str
    tensor: str
    kind: Kind
    block: int | None
    shape: tuple[int, int]
    transposed: bool
    dtype: torch.dtype
    module: str
    bias: str | None


@dataclass(frozen=True)
class Passthrough:
    """A tensor of the files that is no layer. `duplicate_of` names the equal tensor that is used in its place."""

    tensor: str
    reason: str
    duplicate_of: str | None = None


@dataclass(frozen=True)
class Places:
    """Module paths in the model: the list of decoder blocks, the module around it, embedding and head."""

    blocks: str
    decoder: str
    embedding: str
    head: str | None


def find_places(model: PreTrainedModel) -> Places:
    """Where decoder blocks, input embedding and output head are; InputError without such blocks or embedding."""
    paths = {id(module): path for path, module in model.named_modules()}
    embedding = _embedding(model)
    if not isinstance(embedding, nn.Embedding) or id(embedding) not in paths:
        raise InputError(
            f"{type(model).__name__} has no input embedding of the usual kind (a table of token vectors), so "
            "its layers cannot be told apart."
        )
    head = model.get_output_embeddings()
    blocks = _blocks_path(model)
    return Places(
        blocks=blocks,
        decoder=blocks.rpartition(".")[0],
        embedding=paths[id(embedding)],
        head=paths.get(id(head)) if isinstance(head, nn.Linear) else None,
    )


def _embedding(model: PreTrainedModel) -> nn.Module | None:
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        return None


def _blocks_path(model: PreTrainedModel) -> str:
    """The outermost module list with as many entries as the config has layers; the largest if there are several."""
    count = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    lists = {
        path: module for path, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)
    }
    outer = {path: module for path, module in lists.items() if not any(path.startswith(f"{other}.") for other in lists)}
    fitting = {path: module for path, module in outer.items() if len(module) == count} or outer
    if not fitting:
        raise InputError(f"{type(model).__name__} has no list of decoder blocks (no module list at all).")
    return max(fitting, key=lambda path: sum(parameter.numel() for parameter in fitting[path].parameters()))


def classify(
    model: PreTrainedModel,
    places: Places,
    parameters: ParameterMap,
    dtypes: Mapping[str, torch.dtype],
) -> tuple[tuple[Layer, ...], tuple[Passthrough, ...]]:
    """Every tensor of the files (name -> dtype) in exactly one of layers and passthrough.

    Layers come in the order embedding, blocks' linears in module order, head.
    """
    layers = tuple(_layers(model, places, parameters, dtypes))
    taken = {layer.tensor for layer in layers}
    experts = _expert_paths(model.get_submodule(places.blocks), places.blocks)
    passthrough = tuple(_passthrough(name, model, places, parameters, experts) for name in dtypes if name not in taken)
    return layers, passthrough


def _layers(
    model: PreTrainedModel,
    places: Places,
    parameters: ParameterMap,
    dtypes: Mapping[str, torch.dtype],
) -> Iterator[Layer]:
    def layer(module_path: str, kind: Kind, block: int | None = None) -> Layer | None:
        tensor = parameters.file_tensor(f"{module_path}.weight")
        if tensor is None or tensor in seen or not tensor.endswith(".weight"):
            return None
        seen.add(tensor)
        module = model.get_submodule(module_path)
        transposed = isinstance(module, Conv1D)
        rows, columns = module.weight.shape
        return Layer(
            name=tensor.removesuffix(".weight"),
            tensor=tensor,
            kind=kind,
            block=block,
            shape=(columns, rows) if transposed else (rows, columns),
            transposed=transposed,
            dtype=dtypes[tensor],
            module=module_path,
            bias=parameters.file_tensor(f"{module_path}.bias"),
        )

    seen: set[str] = set()
    head_tensor = parameters.file_tensor(f"{places.head}.weight") if places.head else None
    is_tied = head_tensor is not None and head_tensor == parameters.file_tensor(f"{places.embedding}.weight")
    found = [layer(places.embedding, "tied" if is_tied else "embedding")]
    for index, block in enumerate(model.get_submodule(places.blocks)):
        path = f"{places.blocks}.{index}"
        found += [layer(linear, "linear", index) for linear in _linears(block, path)]
    if places.head and not is_tied:
        found.append(layer(places.head, "head"))
    return (entry for entry in found if entry is not None)


def _linears(block: nn.Module, path: str) -> list[str]:
    """Linear modules of a block, without experts and routers."""
    experts = _expert_paths(block, path)
    return [
        f"{path}.{name}"
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and _expert_reason(f"{path}.{name}", experts) is None
    ]


def _expert_paths(root: nn.Module, path: str) -> frozenset[str]:
    """Modules that hold experts: with parameters of three dimensions, or lists called experts."""
    found = set()
    for name, module in root.named_modules():
        stacked = any(parameter.dim() > 2 for parameter in module.parameters(recurse=False))
        listed = isinstance(module, nn.ModuleList) and name.rpartition(".")[2] == EXPERT_LIST
        if listed or (stacked and not isinstance(module, _ConvNd)):
            found.add(f"{path}.{name}")
    return frozenset(found)


def _expert_reason(module_path: str, experts: frozenset[str]) -> str | None:
    parent = module_path.rpartition(".")[0]
    if any(module_path == path or module_path.startswith(f"{path}.") for path in experts):
        return EXPERTS
    # A linear beside the experts scores them; deeper ones (a shared expert's) are ordinary linears.
    return ROUTER if any(path.rpartition(".")[0] == parent for path in experts) else None


def _passthrough(
    name: str, model: PreTrainedModel, places: Places, parameters: ParameterMap, experts: frozenset[str]
) -> Passthrough:
    if name in parameters.duplicates:
        kept = parameters.duplicates[name]
        return Passthrough(name, f"equal copy of {kept}, to which the model ties it", duplicate_of=kept)
    if name in parameters.unused:
        return Passthrough(
            name, "not used by the model class (another task's head, multi-token prediction, old buffers)"
        )
    recipe = parameters.recipe_of[name]
    module_path, _, leaf = recipe.first_target.rpartition(".")
    expert = _expert_reason(module_path, experts)
    # Where experts hang in the block itself, its norms are their neighbours too.
    if expert and not _is_norm(model.get_submodule(module_path)):
        return Passthrough(name, expert)
    if recipe.converter is not None:
        return Passthrough(name, "transformers converts it while loading, so it is no matrix of the model as it stands")
    return Passthrough(name, _reason(model, places, module_path, leaf))


def _reason(model: PreTrainedModel, places: Places, module_path: str, leaf: str) -> str:
    module = model.get_submodule(module_path)
    head_or_decoder = module_path == places.head or _inside(module_path, places.decoder)
    if not head_or_decoder:
        return "outside the text decoder (vision or audio tower, projector)"
    if leaf == "bias":
        return "bias"
    if leaf in module._buffers:
        return "buffer of the model, not a weight"
    if _is_norm(module):
        return "norm gain"
    if isinstance(module, nn.Embedding):
        return _embedding_reason(model, module)
    if isinstance(module, nn.Linear | Conv1D) and not _inside(module_path, places.blocks):
        return "linear outside the decoder blocks"
    return f"parameter of a {type(module).__name__}, not the matrix of a linear"


def _embedding_reason(model: PreTrainedModel, module: nn.Embedding) -> str:
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if positions is not None and 0 <= module.num_embeddings - positions <= POSITION_SLACK:
        return "position embedding"
    return "embedding table beside the input embedding"


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _inside(path: str, outer: str) -> bool:
    return not outer or path == outer or path.startswith(f"{outer}.")
