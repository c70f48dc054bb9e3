"""What the conformance battery runs over. A new rounding, method or part is one line here."""

from collections.abc import Callable
from types import MappingProxyType

import torch
from torch import Tensor

from bitbudget.rounding import nearest
from bitbudget.storage import Choice, StoredWeight

Rounding = Callable[[Tensor, Choice], StoredWeight]
Objective = Callable[[Tensor, Tensor], float]


def squared_error(original: Tensor, decoded: Tensor) -> float:
    return float((original.double() - decoded.double()).square().sum())


# Name -> how codes are chosen, and the objective on which it may not lose to round-to-nearest.
ROUNDINGS: MappingProxyType[str, tuple[Rounding, Objective]] = MappingProxyType({
    "nearest": (nearest, squared_error),
})  # fmt: skip

CHOICES = (
    "int2:g8",
    "int3",
    "int4:g8",
    "int4s:g8",
    "int4:g8:out",
    "int4s:out",
    "int5:g4:zero=half",
    "int6:zero=real",
    "int8",
    "int4:g8:scale=bf16",
    "int4:g8:scale=fp32",
    "int3:g4:zeros=byte:scale=bilevel(6,8x2)",
    "int3:g8:zero=real:zeros=bilevel(4,8x1,offset):scale=bilevel(4,8x1,offset)",
    "int8:g8*25%|int4:g8",
    "int8*10%|int4:g8*30%|int2:g4",
    "int2:g8+outliers:3%",
    "int8*25%|int3s:g8+outliers:0.5%:bf16",
    "int4:g8+outliers:100%",
    "int2:g8:range=clip",
    "int3s:range=clip",
    "int3:g8:range=clip+outliers:3%",
    "int4:g8:range=clip*25%|int2:g4:range=clip+outliers:1%",
)

# (out, in): every choice above fits, with whole groups along both axes; a mix needs rows for each of its parts.
SHAPES = ((8, 8), (16, 24), (40, 8), (24, 120))


def fitting(text: str, shape: tuple[int, int]) -> bool:
    return Choice.parse(text).misfit(shape) is None


def gaussian(shape: tuple[int, int], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
