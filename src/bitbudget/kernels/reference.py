"""The plain twins of every kernel: dequantize a tile of rows, at most 32 MiB in fp32, multiply, forget it.

They run every legal weight on every device, and are what the fast kernels are tested against.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64, Integer
from torch import Tensor

from bitbudget.storage import Activation, StoredWeight

Inputs = Float[Tensor, "*batch in"]
Outputs = Float[Tensor, "*batch out"]


def linear(x: Inputs, weight: StoredWeight) -> Outputs:
    """output_map( Σ parts · activation_format( input_map(x) ) ) + bias, in x's dtype; decoding is fp32.

    x: activations [..., in]. Returns [..., out]. Memory beside the result: one tile in x's dtype, and the product with it.
    """
    x = _transformed(x, weight)
    result = x.new_empty(*x.shape[:-1], weight.shape[0])
    bias = None if weight.bias is None else weight.bias.to(x.dtype)
    # Added before rounding to x's dtype, as an unquantized linear does.
    within = bias is not None and not weight.output_map
    for rows in weight.tiles():
        tile = weight.dequantize(rows, x.dtype)
        result[..., rows] = torch.nn.functional.linear(x, tile, bias[rows] if bias is not None and within else None)
        del tile  # before the next one is made
    if "rows" in weight.output_map:
        order = weight.output_map["rows"].to(torch.int64)
        result = torch.empty_like(result).index_copy_(-1, order, result)
    if "scale" in weight.output_map:
        result = result * weight.output_map["scale"].to(result.dtype)
    return result if bias is None or within else result + bias


@runtime_checkable
class Rows(Protocol):
    """A weight [out, in] that decodes some of its rows."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def dequantize(self, rows: Int64[Tensor, " n"]) -> Float[Tensor, "n in"]: ...


def lookup(ids: Integer[Tensor, "*batch"], weight: Rows) -> Float[Tensor, "*batch in"]:
    """Rows of an embedding [vocabulary, in], fp32; each row that occurs is decoded once.

    Raises:
        IndexError: an id outside the vocabulary, which a part of some rows would silently answer with zeros.
    """
    unique, place = torch.unique(ids, return_inverse=True)
    if unique.numel() and not 0 <= int(unique[0]) <= int(unique[-1]) < weight.shape[0]:
        raise IndexError(f"ids from {int(unique[0])} to {int(unique[-1])} in a vocabulary of {weight.shape[0]}")
    return weight.dequantize(unique.to(torch.int64))[place]


def round_activations(x: Inputs, format: Activation) -> Inputs:
    """Symmetric integers per token and group: scale = max|x| / (2^(b−1) − 1) (MixLLM, section 3.2)."""
    limit = 2 ** (format.bits - 1) - 1
    groups = x.float().unflatten(-1, (-1, format.group or x.shape[-1]))
    scale = groups.abs().amax(-1, keepdim=True) / limit
    scale = torch.where(scale > 0, scale, 1.0)
    return ((groups / scale).round() * scale).flatten(-2).to(x.dtype)


def _transformed(x: Inputs, weight: StoredWeight) -> Inputs:
    if weight.input_map:
        x = x * weight.input_map["scale"].to(x.dtype)
    activation = weight.choice.activation
    return round_activations(x, activation) if activation else x
