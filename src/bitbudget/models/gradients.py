"""Gradients of a streamed model, one block at a time: what entered each linear, and what the loss says of what left it.

For a linear Y = X Wᵀ with G = ∂L/∂Y the gradient of its weight is GᵀX. Both factors are handed out, so the weights need no
gradient of their own and whoever wants the product makes only the rows that fit into memory.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bitbudget.models.layers import Layer
from bitbudget.models.stream import BlockStream, States

Logits = Float[Tensor, "scored vocabulary"]
# Writes the gradient of a loss that the caller chooses, from logits, into the second.
LogitsGradient = Callable[[Logits, Logits], None]


@dataclass(frozen=True)
class Factors:
    """inputs X and gradients G = ∂L/∂Y of one layer, a row a token, in fp32."""

    inputs: Float[Tensor, "tokens in"]
    gradients: Float[Tensor, "tokens out"]


@contextmanager
def captured_inputs(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """By name: what every call of these modules received, [tokens, in]."""
    seen: dict[str, list[Tensor]] = {name: [] for name in modules}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, args: seen[name].append(args[0].detach().flatten(0, -2))

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def captured_factors(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Factors]]]:
    """By name: X and G of every call of these modules that a backward pass reaches while the context lasts."""
    seen: dict[str, list[Factors]] = {name: [] for name in modules}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def remember(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            inputs = args[0].detach()
            if output.requires_grad:
                # By closure: each gradient meets the input of its own call, whatever the order of calls.
                output.register_hook(lambda gradient: seen[name].append(_factors(inputs, gradient)))

        return remember

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _factors(inputs: Tensor, gradient: Tensor) -> Factors:
    return Factors(inputs.flatten(0, -2).float(), gradient.detach().flatten(0, -2).float())


def joined(calls: list[Factors]) -> Factors | None:
    """All calls of one module as one; None if it was never called."""
    if len(calls) < 2:
        return calls[0] if calls else None
    return Factors(torch.cat([call.inputs for call in calls]), torch.cat([call.gradients for call in calls]))


class GradientStream:
    """Backward through a streamed model, from the loss to the embedding."""

    def __init__(self, stream: BlockStream) -> None:
        self.stream = stream

    def modules(self, layers: list[Layer]) -> dict[str, nn.Module]:
        """Modules of layers by the layers' names."""
        return {layer.name: self.stream.model.get_submodule(layer.module) for layer in layers}

    def from_logits(
        self,
        states: States,
        sequence: int,
        hidden: Float[Tensor, "1 tokens width"],
        positions: slice,
        gradient: LogitsGradient,
    ) -> tuple[Float[Tensor, "1 tokens width"], Factors | None]:
        """The gradient at what the last block returns, and X and G of the head (None where the model has no head module).

        hidden: what the last block returns. `gradient` gets the logits at `positions`, and zeros to write over. Final norm and
        head stay loaded until the stream's `free`.
        """
        head = self.stream.model.get_output_embeddings()
        with torch.enable_grad(), captured_factors({} if head is None else {"head": head}) as seen:
            leaf = hidden.detach().requires_grad_()
            logits = self.stream.finish(states, sequence, leaf)
            with torch.no_grad():
                wanted = torch.zeros_like(logits)
                gradient(logits.detach()[positions], wanted[positions])
            (entering,) = torch.autograd.grad(logits, leaf, wanted)
        return entering, joined(seen.get("head", []))

    def through_block(
        self,
        index: int,
        states: States,
        sequence: int,
        hidden: Float[Tensor, "1 tokens width"],
        gradient: Float[Tensor, "1 tokens width"],
        layers: list[Layer],
    ) -> tuple[Float[Tensor, "1 tokens width"], dict[str, Factors]]:
        """The gradient at a loaded block's input, from that at its result, with X and G of its layers (those it called)."""
        with torch.enable_grad(), captured_factors(self.modules(layers)) as seen:
            leaf = hidden.detach().requires_grad_()
            returned = self.stream.call(index, states, sequence, leaf)
            (entering,) = torch.autograd.grad(returned, leaf, gradient)
        factors = {name: joined(calls) for name, calls in seen.items()}
        return entering, {name: factor for name, factor in factors.items() if factor is not None}

    def at_embedding(
        self, states: States, sequence: int, gradient: Float[Tensor, "1 tokens width"]
    ) -> tuple[Int[Tensor, " n"], Float[Tensor, "n columns"]]:
        """Ids of the tokens that occur, ascending, and the gradient of their rows of the embedding's table, from that at what
        enters block 0.
        """
        return self.stream.embedding_gradient(states.sequences[sequence], gradient)
