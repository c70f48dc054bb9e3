"""Budgets: what a user asks for, in bytes or bits, and what is left of it for the layers.

The solver limits the bytes of the layers (the dimension `bytes`), the code bits of the blocks' linears (`code_bits`), bytes of
the files (`disk`), and bytes of the layers as they are held while the model runs (`memory`). Everything else that a budget has to
pay for is a constant, known from headers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bitbudget.errors import InputError
from bitbudget.models.layers import Layer
from bitbudget.models.source import SourceModel

BYTES, CODE_BITS, DISK, MEMORY = "bytes", "code_bits", "disk", "memory"
DIMENSIONS = (BYTES, CODE_BITS, DISK, MEMORY)


@dataclass(frozen=True)
class Budget:
    """What may not be exceeded; None: no limit.

    memory: bytes of tensors, key-value cache and reserve while the model runs. weights: Σ bytes of all tensors.
    disk: bytes of the safetensors files and their index. bits: 8 × stored bytes of all layers over their weights, those kept
    at 16 bits included. code_bits: Σ code bits over the weights of the blocks' linears, as papers count.
    """

    memory: int | None = None
    weights: int | None = None
    disk: int | None = None
    bits: float | None = None
    code_bits: float | None = None

    def __bool__(self) -> bool:
        return any(value is not None for value in asdict(self).values())

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    def check(self) -> None:
        """Raise InputError for a budget that is no positive number."""
        for name, value in self.to_dict().items():
            if not value > 0 or not math.isfinite(value):
                raise InputError(f"A budget of {value} for --{name.replace('_', '-')} makes no sense; give more than 0.")


def passthrough_bytes(source: SourceModel) -> int:
    """Bytes of the tensors that are written as they are, besides the layers."""
    return sum(source.checkpoint.tensors[entry.tensor].nbytes for entry in source.passthrough if not entry.duplicate_of)


def counted(layers: Sequence[Layer]) -> list[Layer]:
    """Layers whose code bits papers count: the blocks' linears."""
    return [layer for layer in layers if layer.kind == "linear"]


def limits(budget: Budget, source: SourceModel, beside_weights: int) -> dict[str, int | None]:
    """Limits of the solver's dimensions, below 0 where a budget is used up before the first layer. beside_weights: bytes that
    running the model takes besides its tensors.
    """
    constant = passthrough_bytes(source)
    weights = sum(math.prod(layer.shape) for layer in source.layers)
    left: list[int] = []
    memory = None if budget.memory is None else budget.memory - beside_weights - constant
    if budget.weights is not None:
        left.append(budget.weights - constant)
    if budget.bits is not None:
        left.append(math.floor(budget.bits * weights / 8))
    code_bits = None
    if budget.code_bits is not None:
        code_bits = math.floor(budget.code_bits * sum(math.prod(layer.shape) for layer in counted(source.layers)))
    return {BYTES: min(left, default=None), CODE_BITS: code_bits, DISK: budget.disk, MEMORY: memory}


def option(name: str, budget: Budget) -> str:
    """One of a budget's amounts as the command line says it."""
    amount = getattr(budget, name)
    text = f"{amount:,} bytes" if isinstance(amount, int) and name not in ("bits", "code_bits") else f"{amount:g}"
    return f"--{name.replace('_', '-')} {text}"


def described(budget: Budget) -> str:
    """All of a budget's amounts as the command line says them."""
    return " and ".join(option(name, budget) for name in budget.to_dict())


def exceeded(limit: Mapping[str, int | None], costs: Mapping[str, int]) -> list[str]:
    """Dimensions whose limit is exceeded."""
    return [name for name, most in limit.items() if most is not None and costs[name] > most]
