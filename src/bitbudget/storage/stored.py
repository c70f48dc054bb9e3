"""A stored weight: y = output_map( Σ parts · activation_format( input_map(x) ) ) + bias."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bitbudget.errors import InputError
from bitbudget.storage.choice import Choice, Shape
from bitbudget.storage.layout import NATIVE
from bitbudget.storage.parts import DECODED_AT_ONCE, DensePart, OutlierPart, Part

TILE_BYTES = 32 * 2**20


@dataclass(frozen=True)
class StoredWeight:
    """A weight [out, in] as its choice stores it: parts between optional input and output maps, and an optional bias.

    The parts are summed in order; `nested` says that every prefix of them is a legal weight by itself.
    """

    choice: Choice
    shape: Shape
    parts: tuple[Part, ...]
    names: tuple[str, ...]
    input_map: dict[str, Tensor]
    output_map: dict[str, Tensor]
    bias: Tensor | None = None
    nested: bool = False

    @classmethod
    def from_tensors(
        cls, choice: Choice, shape: Shape, tensors: dict[str, Tensor], bias: Tensor | None = None
    ) -> "StoredWeight":
        """Bind a choice to its tensors, named relative to the layer as the native layout names them.

        Raises:
            InputError: a tensor is missing, unknown, or of another dtype or shape than the choice asks for; or the
                choice cannot store this shape.
        """
        if reason := "it keeps a weight as it is" if choice.kept else choice.misfit(shape):
            raise InputError(f"No weight {list(shape)} can be stored as {choice}: {reason}.")
        _check_tensors(choice, shape, tensors)
        counts = choice.row_counts(shape[0])
        names = choice.dense_names()
        parts: list[Part] = [
            DensePart(part, (rows, shape[1]), _under(tensors, name))
            for name, part, rows in zip(names, choice.dense, counts, strict=True)
        ]
        if choice.outliers:
            names = (*names, "outliers")
            parts.append(OutlierPart(choice.outliers, shape, _under(tensors, "outliers")))
        maps = _under(tensors, "input_map"), _under(tensors, "output_map")
        return cls(choice, shape, tuple(parts), names, *maps, bias=bias)

    def tensors(self) -> dict[str, Tensor]:
        """All stored tensors but the bias, named relative to the layer."""
        groups = dict(zip(self.names, (part.tensors() for part in self.parts), strict=True))
        groups |= {"input_map": self.input_map, "output_map": self.output_map}
        named = {f"{group}.{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}
        return {"weight": torch.empty(0, dtype=torch.bfloat16)} | named

    @property
    def device(self) -> torch.device:
        return next(iter(self.parts[0].tensors().values())).device

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def dequantize(
        self, rows: Int64[Tensor, " n"] | slice | None = None, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "n in"]:
        """Σ parts for some rows (default all), before the maps; summed in fp32, a few rows at a time, then rounded."""
        every = torch.arange(self.shape[0], device=self.device)
        chosen = rows if isinstance(rows, Tensor) else every[rows or slice(None)]
        tile = torch.empty(len(chosen), self.shape[1], dtype=dtype, device=self.device)
        step = max(1, DECODED_AT_ONCE // self.shape[1])
        for few, target in zip(chosen.split(step), tile.split(step), strict=True):
            summed = torch.zeros(target.shape, device=self.device)
            for part in self.parts:
                part.add_to(summed, few)
            target.copy_(summed)
        return tile

    def tiles(self, columns_bytes: int = 4) -> list[slice]:
        """Row ranges whose dequantized fp32 values stay within 32 MiB."""
        step = max(1, TILE_BYTES // (columns_bytes * self.shape[1]))
        return [slice(start, min(start + step, self.shape[0])) for start in range(0, self.shape[0], step)]


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix + "."): tensor for name, tensor in tensors.items() if name.startswith(prefix + ".")
    }


def _check_tensors(choice: Choice, shape: Shape, tensors: dict[str, Tensor]) -> None:
    expected = {spec.name: spec for spec in NATIVE.specs(choice, shape) if spec.name != "weight"}
    found = {name: tensor for name, tensor in tensors.items() if name != "weight"}
    if missing := sorted(expected.keys() - found.keys()):
        raise InputError(f"A weight stored as {choice} misses its tensors {', '.join(missing)}.")
    if extra := sorted(found.keys() - expected.keys()):
        raise InputError(f"A weight stored as {choice} has tensors that this choice does not know: {', '.join(extra)}.")
    for name, spec in expected.items():
        tensor = found[name]
        if tensor.dtype != spec.dtype or tuple(tensor.shape) != spec.shape:
            raise InputError(
                f"The tensor {name} of a weight {list(shape)} stored as {choice} is {tensor.dtype} "
                f"{list(tensor.shape)}; the choice asks for {spec.dtype} {list(spec.shape)}."
            )
