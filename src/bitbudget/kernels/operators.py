"""The operator `torch.ops.bitbudget.packed_linear`, by which `torch.compile` and `torch.export` see the CPU kernels.

Without a graph, modules call the kernels directly and share quantized inputs. Here every call stands alone and trusts
nothing: whatever tensors it is given, it computes or raises an error.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bitbudget.kernels.extension import ISAS
from bitbudget.kernels.inputs import ACTIVATIONS, RUN_IN, Inputs
from bitbudget.kernels.products import CodeLayout, PackedPart, Weight, add_sparse, are_outliers, is_sparse_matrix

SCHEMA = (
    "(Tensor x, Tensor[] packed, int[] layouts, Tensor[] outliers, Tensor[] orders, Tensor? bias, "
    "int in_features, int out_features, int isa, int activations) -> Tensor"
)


@torch.library.custom_op("bitbudget::packed_linear", mutates_args=(), device_types="cpu", schema=SCHEMA)
def packed_linear(  # noqa: PLR0913 -- an operator's arguments are tensors and numbers
    x: Tensor,
    packed: Sequence[Tensor],
    layouts: Sequence[int],
    outliers: Sequence[Tensor],
    orders: Sequence[Tensor],
    bias: Tensor | None,
    in_features: int,
    out_features: int,
    isa: int,
    activations: int,
) -> Tensor:
    """x Ŵᵀ + bias, fp32 [..., out].

    x: [..., in], fp32, bf16 or fp16. packed: bytes of each dense part; layouts: rows, group size, bits and parameters of
    each. outliers: none; or bytes for each dense part; or row pointers, columns and values. orders: of each part and then of
    the outliers, the output of its rows, int32, or an empty tensor for the rows' own numbers. bias: fp32 [out]. isa,
    activations: by number.

    Raises:
        ValueError, TypeError: tensors or numbers that do not fit.
    """
    _check(x, packed, layouts, outliers, orders, bias)
    _require(x.shape[-1] == in_features, f"x has {x.shape[-1]} columns, the weight {in_features}")
    _require(0 <= isa < len(ISAS) and 0 <= activations < len(ACTIVATIONS) and out_features >= 0, "numbers out of range")
    columns, inputs = x.shape[-1], Inputs(x)
    y = torch.zeros(*x.shape[:-1], out_features)
    parts = []
    for place, (tensor, order) in enumerate(zip(packed, orders, strict=False)):
        count, group, bits, parameters = layouts[4 * place : 4 * place + 4]
        layout = CodeLayout(isa, count, columns, group, bits, parameters)
        parts.append(PackedPart(layout, tensor, _given(order), _sparse(layout, outliers, place)))
    if parts:
        Weight(parts, out_features).multiply(x, inputs, activations, bias, y)
    if outliers and not _within(outliers):
        pointers, places, values = outliers
        _require(is_sparse_matrix(pointers, places, values.numel(), columns), "outliers are no sparse matrix")
        add_sparse(inputs.rows(x), pointers, places, values, _given(orders[-1]), y.view(-1, out_features))
    return y


@packed_linear.register_fake
def _(  # noqa: PLR0913 -- as the operator
    x: Tensor,
    packed: Sequence[Tensor],
    layouts: Sequence[int],
    outliers: Sequence[Tensor],
    orders: Sequence[Tensor],
    bias: Tensor | None,
    in_features: int,
    out_features: int,
    isa: int,
    activations: int,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_features), dtype=torch.float32)


def _within(outliers: Sequence[Tensor]) -> bool:
    """Whether outliers are packed with the dense parts."""
    return bool(outliers) and outliers[0].dtype == torch.uint8


def _sparse(layout: CodeLayout, outliers: Sequence[Tensor], place: int) -> Tensor | None:
    if not _within(outliers):
        return None
    _require(are_outliers(layout, outliers[place]), "these are no packed outliers of this part")
    return outliers[place]


def _given(order: Tensor) -> Tensor | None:
    return order if order.numel() else None


def _check(
    x: Tensor,
    packed: Sequence[Tensor],
    layouts: Sequence[int],
    outliers: Sequence[Tensor],
    orders: Sequence[Tensor],
    bias: Tensor | None,
) -> None:
    _require(x.dim() >= 1 and x.dtype in RUN_IN, "x is fp32, bf16 or fp16 of at least one dimension")
    _require(len(layouts) == 4 * len(packed), "rows, group size, bits and parameters for each part")
    within = _within(outliers)
    _require(
        len(outliers) in (0, len(packed) if within else 3),
        "outliers are bytes for each part, or a matrix of three tensors",
    )
    _require(len(orders) == len(packed) + bool(outliers), "an order for each part, and for the outliers")
    matrix = [] if within else outliers
    dtypes: list[tuple[torch.dtype, Sequence[Tensor]]] = [
        (torch.uint8, [*packed, *(outliers if within else [])]),
        (torch.int32, [*orders, *matrix[:2]]),
    ]
    dtypes.append((torch.float32, matrix[2:]))
    dtypes.append((torch.float32, [] if bias is None else [bias]))
    for dtype, tensors in dtypes:
        for tensor in tensors:
            fits = (
                tensor.dtype == dtype and tensor.dim() == 1 and tensor.is_contiguous() and tensor.device.type == "cpu"
            )
            _require(fits, f"a tensor is not {dtype}, of one dimension, contiguous and on the CPU")


def _require(fits: bool, what: str) -> None:
    if not fits:
        raise ValueError(f"bitbudget::packed_linear: {what}")
