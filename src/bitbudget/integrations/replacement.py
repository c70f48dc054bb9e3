"""The module that takes the place of a linear or an embedding, once it is known to compute the same.

Model classes subclass `nn.Linear` and `nn.Embedding`: some only rename, some scale (Gemma), some compute something
else. A subclass with a forward of its own is run on a tiny table, and refused unless the result is what ours will give.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bitbudget.errors import InputError
from bitbudget.kernels.linear import QuantEmbedding, QuantLinear, QuantModule
from bitbudget.storage import Choice, Shape


def shape_of(module: nn.Module) -> Shape | None:
    """[out, in] of the weight of a module that can be replaced; None for any other module."""
    if not isinstance(module, nn.Linear | nn.Embedding | Conv1D):
        return None
    rows, columns = module.weight.shape
    return (columns, rows) if isinstance(module, Conv1D) else (rows, columns)


def replacement(module: nn.Module, choice: Choice, shape: Shape) -> QuantModule:
    """A module without data (on the device of the old one) for a weight of this choice.

    Raises InputError if the old one computes something that the new one would not.
    """
    weight = module.get_parameter("weight")
    if isinstance(module, nn.Embedding):
        return QuantEmbedding(choice, shape, module.padding_idx, multiplier(module), weight.dtype, weight.device)
    _refuse_other_linears(module)
    return QuantLinear(choice, shape, module.bias is not None, weight.dtype, weight.device)


def multiplier(module: nn.Embedding) -> float | Tensor:
    """What an embedding multiplies its rows with: 1, a number, or a tensor that it rounds to the rows' dtype.

    Raises InputError if its forward is no such product.
    """
    if type(module).forward is nn.Embedding.forward:
        return 1.0
    scale = getattr(module, "embed_scale", 1.0)
    if isinstance(scale, Tensor):  # on meta now; the number that it is going to be stands beside it
        scale = torch.tensor(float(getattr(module, "scalar_embed_scale", "nan")), device="cpu")
    table = torch.linspace(-1, 1, 3 * module.embedding_dim, device="cpu").view(3, -1)
    ids = torch.tensor([[2, 0, 1]], device="cpu")
    buffers = {"embed_scale": scale} if isinstance(scale, Tensor) else {}
    probe = _with_values(module, {"weight": table}, buffers)
    if scale is None or not _gives(lambda: probe(ids), table[ids] * scale):
        raise InputError(
            f"The embedding of this model is a {type(module).__name__}, which does more than look rows up and scale "
            "them, so it cannot be run from a quantized table. Quantize the model again with the embedding kept in 16 "
            "bits."
        )
    return scale


def _refuse_other_linears(module: nn.Module) -> None:
    if type(module).forward in (nn.Linear.forward, Conv1D.forward):
        return
    weight = torch.tensor([[1.0, -1.0, 2.0], [0.5, 3.0, -2.0]], device="cpu")
    bias = None if module.bias is None else torch.tensor([0.5, -2.0], device="cpu")
    x = torch.tensor([[[1.0, -2.0, 0.5]]], device="cpu")
    probe = _with_values(module, {"weight": weight, "bias": bias}, {})
    if not _gives(lambda: probe(x), nn.functional.linear(x, weight, bias)):
        raise InputError(
            f"This model has linears of the class {type(module).__name__}, which compute something else than x Wᵀ + b, "
            "so they cannot be replaced. Quantize the model again with these layers kept in 16 bits."
        )


def _with_values(module: nn.Module, parameters: dict[str, Tensor | None], buffers: dict[str, Tensor]) -> nn.Module:
    """The module with other values; it shares everything else."""
    probe = copy.copy(module)
    probe.__dict__["_parameters"] = {
        name: None if value is None else nn.Parameter(value) for name, value in parameters.items()
    }
    probe.__dict__["_buffers"] = buffers
    return probe


def _gives(run: Callable[[], Tensor], expected: Tensor) -> bool:
    try:
        with torch.device("cpu"), torch.no_grad():
            result = run()
    # A forward of somebody else's that does not take the tiny table may raise anything.
    except Exception:
        return False
    return isinstance(result, Tensor) and result.shape == expected.shape and torch.allclose(result, expected)
