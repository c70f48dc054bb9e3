"""Runs a loaded block in fp64 with some of its weights scaled, and shows what each of its modules saw.

In fp64 a change that preserves the function agrees to about 1e-15, so nothing but a true pair passes. One module's
parameters at a time are fp64; the loaded block stays as it is.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

from bitbudget.models.recording import Call

TOLERANCE = 1e-9  # of the largest output; true pairs stay far below, wrong ones far above
NARROW = frozenset({torch.float32, torch.float16, torch.bfloat16})
NARROWING = frozenset({Tensor.float, Tensor.half, Tensor.bfloat16})
GROUPED = frozenset({getattr(torch, "_grouped_mm", None)}) - {None}  # older versions have none

Factor = Float64[Tensor, " _"]


@dataclass(frozen=True)
class Change:
    """Factors on a module's weight (out features or gains: `rows`, with the bias; in features: `columns`).

    `one_plus`: the gain is stored as 1 + weight.
    """

    rows: Factor | None = None
    columns: Factor | None = None
    one_plus: bool = False

    def joined(self, other: "Change") -> "Change":
        """Both on the same module; they scale different sides of it."""
        assert self.rows is None or other.rows is None
        assert self.columns is None or other.columns is None
        rows = other.rows if self.rows is None else self.rows
        columns = other.columns if self.columns is None else self.columns
        return Change(rows, columns, self.one_plus or other.one_plus)

    def apply(self, name: str, value: Float64[Tensor, "..."], transposed: bool) -> Float64[Tensor, "..."]:
        """What the parameter `name` becomes; `transposed`: the weight is [in, out]."""
        if name == "weight" and value.dim() == 2:
            first, second = (self.columns, self.rows) if transposed else (self.rows, self.columns)
            value = value if first is None else value * first[:, None]
            return value if second is None else value * second
        if self.rows is None:
            return value
        return (1 + value) * self.rows - 1 if self.one_plus and name == "weight" else value * self.rows


@dataclass
class Trace:
    """What modules with parameters of their own received and returned, in the order of their calls."""

    inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    called: set[str] = field(default_factory=set)  # every module that ran, by path


class DoubleBlock:
    """A loaded block, the arguments of one call, and hidden states to try it with."""

    def __init__(self, block: nn.Module, call: Call, hidden: Float64[Tensor, "1 tokens width"]) -> None:
        self.block = block
        self._call = Call(_doubled(call.args), _doubled(call.kwargs))
        self._hidden = hidden
        self._usual: Tensor | None = None

    def run(self, changes: Mapping[str, Change], trace: Trace | None = None) -> Float64[Tensor, "1 tokens width"]:
        """The block's output in fp64 with these modules (by their path in the block) changed."""
        with torch.no_grad(), _in_double(self.block, changes, trace), _Double():
            returned = self._call.apply(self.block, self._hidden.clone())
        return returned if isinstance(returned, Tensor) else returned[0]

    def agrees(self, changes: Mapping[str, Change]) -> bool:
        """Whether the output stays the same."""
        if self._usual is None:
            self._usual = self.run({})
        difference = (self.run(changes) - self._usual).abs().max()
        return bool(difference <= TOLERANCE * self._usual.abs().max())  # False for NaN


class _Double(TorchFunctionMode):
    """Conversions to a narrower float become fp64: norms and softmax would otherwise round inside."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in NARROWING:
            return args[0].double()
        if func in GROUPED:
            return _grouped(*args, **(kwargs or {}))
        args = tuple(torch.float64 if _narrow(value) else value for value in args)
        kwargs = {key: torch.float64 if _narrow(value) else value for key, value in (kwargs or {}).items()}
        return func(*args, **kwargs)


def _grouped(
    tokens: Float64[Tensor, "tokens in"],
    weights: Float64[Tensor, "experts in out"],
    *,
    offs: Int[Tensor, " experts"],
    **_: Any,
) -> Float64[Tensor, "tokens out"]:
    """Product of each expert's tokens, which end at `offs`, with its weight: torch's own knows no fp64."""
    result = tokens.new_zeros(tokens.shape[0], weights.shape[2])
    start = 0
    for weight, stop in zip(weights, offs.tolist(), strict=True):
        result[start:stop] = tokens[start:stop] @ weight
        start = stop
    return result


def _narrow(value: Any) -> bool:
    return isinstance(value, torch.dtype) and value in NARROW


def _doubled(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if type(value) is dict:
        return {key: _doubled(entry) for key, entry in value.items()}
    return type(value)(map(_doubled, value)) if type(value) in (tuple, list) else value


@contextmanager
def _in_double(block: nn.Module, changes: Mapping[str, Change], trace: Trace | None) -> Iterator[None]:
    """Gives each module fp64 parameters for as long as it runs, and writes down what passes through it."""
    originals = {path: dict(module._parameters) for path, module in block.named_modules()}
    handles = []
    try:
        for path, module in block.named_modules():
            enter, leave = _hooks(path, originals[path], changes.get(path), trace)
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for path, module in block.named_modules():
            module._parameters.update(originals[path])


def _hooks(
    path: str, original: dict[str, nn.Parameter | None], change: Change | None, trace: Trace | None
) -> tuple[Callable[..., None], Callable[..., None]]:
    own = {name: parameter for name, parameter in original.items() if parameter is not None}

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for name, parameter in own.items():
            value = parameter.double() if parameter.is_floating_point() else parameter
            if change is not None:
                value = change.apply(name, value, isinstance(module, Conv1D))
            module._parameters[name] = nn.Parameter(value, requires_grad=False)
        if trace is not None:
            trace.called.add(path)
            if own:
                trace.inputs[path] = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]

    def leave(module: nn.Module, args: tuple[Any, ...], returned: Any) -> None:
        module._parameters.update(original)
        if trace is not None and own and isinstance(returned, Tensor):
            trace.outputs[path] = returned

    return enter, leave


def random_hidden(
    like: Float[Tensor, "1 tokens width"], generator: torch.Generator
) -> Float64[Tensor, "1 tokens width"]:
    """Hidden states of deviation 1 in the shape of `like`."""
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.device)
