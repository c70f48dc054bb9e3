"""Layouts: how a choice becomes named tensors in a file. One target, one layout; the native one is DESIGN.md's."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from bitbudget.storage.choice import Choice, Shape
from bitbudget.storage.tensors import TensorSpec, index_dtype


@runtime_checkable
class Layout(Protocol):
    """Names, dtypes and shapes of the tensors that a choice takes in one kind of file."""

    def specs(self, choice: Choice, shape: Shape) -> tuple[TensorSpec, ...]:
        """Tensors of a weight [out, in], named relative to the layer."""
        ...


@dataclass(frozen=True)
class NativeLayout:
    """`<layer>.<part>.<tensor>`, and an empty `<layer>.weight`.

    The empty tensor costs no data. It has the name that the unquantized layer's tensor had, so a loader that does not
    know this format stops at its shape instead of running with random weights.
    """

    def specs(self, choice: Choice, shape: Shape) -> tuple[TensorSpec, ...]:
        if choice.kept:
            return (TensorSpec("weight", choice.kept.dtype, shape),)
        return tuple(self._quantized(choice, shape))

    def _quantized(self, choice: Choice, shape: Shape) -> Iterator[TensorSpec]:
        yield TensorSpec("weight", torch.bfloat16, (0,))
        counts = choice.row_counts(shape[0])
        for name, part, rows in zip(choice.dense_names(), choice.dense, counts, strict=True):
            if rows < shape[0]:
                yield TensorSpec(f"{name}.rows", index_dtype(shape[0]), (rows,))
            for spec in part.specs((rows, shape[1])):
                yield spec.under(name)
        if choice.outliers:
            for spec in choice.outliers.specs(shape):
                yield spec.under("outliers")
        if choice.input_map:
            yield TensorSpec("input_map.scale", torch.float32, (shape[1],))
        if choice.output_map == "permute":
            yield TensorSpec("output_map.rows", index_dtype(shape[0]), (shape[0],))
        if choice.output_map == "scale":
            yield TensorSpec("output_map.scale", torch.float32, (shape[0],))


NATIVE = NativeLayout()
