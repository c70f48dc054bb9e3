"""AWQ: a scale for each input channel, chosen by the activations, before rounding.  Lin et al., MLSys 2024 (arXiv 2306.00978).

    s_j = x̄_j^α,   x̄_j = mean over tokens of |X_j|                                         (eq. 5)
    α*  = argmin over a grid of ‖ f(Q(W·diag(s))·diag(s)⁻¹, X) − f(W, X) ‖²                 (eq. 4)

One α for the linears that share an input; f is the innermost module around them, called on the original model's inputs.
The scale is normalised by √(max s · min s), dead channels keep 1, and what is tried is the scale that can be folded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bitbudget.models.layers import Layer
from bitbudget.models.source import SourceModel
from bitbudget.models.stream import BlockStream, States
from bitbudget.transforms.fold import Fold
from bitbudget.transforms.pairs import ScaleGroup
from bitbudget.transforms.scaling import Scaling

Weight = Float[Tensor, "out in"]
Quantized = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True)
class Awq:
    """`grid`: how many exponents α = k/grid are tried, k = 0 … grid − 1. `tokens`: how many of the text a search sees."""

    grid: int = 20
    tokens: int = 4096
    least: float = 1e-4  # the smallest scale before normalisation


@dataclass(frozen=True)
class Searched:
    """What the search of one group found: losses are mean squared errors at the inspected module's output."""

    group: ScaleGroup
    alpha: float
    loss: float
    loss_unscaled: float


def search_block(
    awq: Awq, stream: BlockStream, states: States, index: int, groups: tuple[ScaleGroup, ...], quantized: Quantized
) -> tuple[Fold, tuple[Searched, ...]]:
    """The best scales of one block's groups, which must be loaded, and what was found for each.

    `states.hidden` are the original model's inputs of this block. `quantized(name, weight [out, in])` gives the values
    that the layer's stored form decodes to, or the weight itself where the layer is kept. Groups are searched each by
    itself on the original block, as AWQ does.
    """
    fold = Fold.none()
    searched = []
    for group in groups:
        with torch.no_grad():
            found, result = _Trial(awq, stream, group, _captured(awq, stream, states, index, group)).best(quantized)
        fold = fold.then(found)
        searched.append(result)
    return fold, tuple(searched)


@dataclass(frozen=True)
class _Captured:
    """Calls of the inspected module with what it returned, and mean |X| of the consumers' columns."""

    calls: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...]
    outputs: tuple[Tensor, ...]
    magnitude: Float[Tensor, " in"]


def _captured(awq: Awq, stream: BlockStream, states: States, index: int, group: ScaleGroup) -> _Captured:
    """Runs the block on its first sequences; at least on one."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    outputs: list[Tensor] = []
    sums: list[Float64[Tensor, " in"]] = []
    tokens = 0

    def inspect(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], returned: Any) -> None:
        calls.append((args, kwargs))
        outputs.append(_first(returned))

    def weigh(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entering = _first((*args, *kwargs.values()))
        sums.append(entering.abs().flatten(0, -2).sum(0, dtype=torch.float64))

    consumer = _consumers(stream.source, group)[0]
    hooks = [
        stream.model.get_submodule(group.inspected).register_forward_hook(inspect, with_kwargs=True),
        stream.model.get_submodule(consumer.module).register_forward_pre_hook(weigh, with_kwargs=True),
    ]
    try:
        for number, sequence in enumerate(states.sequences):
            if tokens and tokens + len(sequence) > awq.tokens:
                break
            stream.call(index, states, number)
            tokens += len(sequence)
    finally:
        for hook in hooks:
            hook.remove()
    return _Captured(tuple(calls), tuple(outputs), (torch.stack(sums).sum(0) / tokens).float())


class _Trial:
    """The search of one group, whose block is loaded."""

    def __init__(self, awq: Awq, stream: BlockStream, group: ScaleGroup, captured: _Captured) -> None:
        self._awq = awq
        self._group = group
        self._captured = captured
        self._scaling = Scaling(stream.source, group)
        self._inspected = stream.model.get_submodule(group.inspected)
        self._consumers = [
            (layer.name, stream.model.get_submodule(layer.module)) for layer in _consumers(stream.source, group)
        ]

    def best(self, quantized: Quantized) -> tuple[Fold, Searched]:
        """The exponent with the smallest loss, the first of equals; α = 0 (no scale) comes first."""
        losses: list[float] = []
        tried = None
        for number in range(self._awq.grid):
            factor = self._scaling.exact(self._scale(number / self._awq.grid))
            # Powers of two often stay the same from one exponent to the next.
            is_new = tried is None or not torch.equal(factor, tried)
            losses.append(self._loss(factor, quantized) if is_new else losses[-1])
            tried = factor
        place = min(range(len(losses)), key=lambda number: losses[number])
        alpha = place / self._awq.grid
        return self._scaling.fold(self._scale(alpha)), Searched(self._group, alpha, losses[place], losses[0])

    def _scale(self, alpha: float) -> Float[Tensor, " channels"]:
        """x̄^α, normalised; 1 for dead channels. Copies of a channel count by their mean."""
        magnitude = self._captured.magnitude.cpu()
        if self._group.columns is not None:
            total = torch.zeros(self._group.channels).index_add_(0, torch.tensor(self._group.columns), magnitude)
            magnitude = total / self._group.repeats
        alive = magnitude > 0
        scale = torch.ones(self._group.channels)
        if bool(alive.any()):
            powered = magnitude[alive].pow(alpha).clamp(min=self._awq.least)
            scale[alive] = powered / (powered.max() * powered.min()).sqrt()
        return scale

    def _loss(self, factor: Float[Tensor, " channels"], quantized: Quantized) -> float:
        """Mean squared error of the inspected module with consumers that are scaled, quantized and scaled back."""
        columns = self._scaling.columns(factor)
        originals = [(module, module._parameters["weight"]) for _, module in self._consumers]
        try:
            for name, module in self._consumers:
                module._parameters["weight"] = _tried(name, module, columns, quantized)
            return self._error()
        finally:
            for module, original in originals:
                module._parameters["weight"] = original

    def _error(self) -> float:
        total = count = 0.0
        for (args, kwargs), expected in zip(self._captured.calls, self._captured.outputs, strict=True):
            difference = _first(self._inspected(*args, **kwargs)).float() - expected.float()
            total += float(difference.square().sum(dtype=torch.float64))
            count += difference.numel()
        return total / count


def _tried(name: str, module: nn.Module, factor: Float[Tensor, " in"], quantized: Quantized) -> nn.Parameter:
    """The weight Q(W·diag(s))·diag(s)⁻¹ as the module holds it; its own weight where the layer is kept."""
    own = module._parameters["weight"]
    assert own is not None
    factor = factor.to(own.device)
    weight = (own.T if isinstance(module, Conv1D) else own).float() * factor
    decoded = quantized(name, weight)
    if decoded is weight:
        return own
    decoded = (decoded / factor).to(own.dtype)
    return nn.Parameter(decoded.T if isinstance(module, Conv1D) else decoded, requires_grad=False)


def _consumers(source: SourceModel, group: ScaleGroup) -> list[Layer]:
    by_name = {layer.name: layer for layer in source.layers}
    return [by_name[name] for name in group.consumers]


def _first(returned: Any) -> Tensor:
    return returned if isinstance(returned, Tensor) else returned[0]
