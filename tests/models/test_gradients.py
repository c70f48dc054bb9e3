"""Streamed gradients against autograd on the whole model, for every layer of every architecture."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import zoo
from bitbudget.models.gradients import GradientStream
from bitbudget.models.source import SourceModel
from bitbudget.models.stream import BlockStream, CheckpointWeights

TOKENS = 30
SCORED = slice(1, TOKENS - 1)


def streamed(source: SourceModel, ids: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """Gradients of all layers' weights, by name."""
    stream = BlockStream(source, CheckpointWeights(source.checkpoint), torch.device("cpu"), torch.float32)
    states = stream.start([ids])
    entered = []
    for block in range(stream.block_count):
        entered.append(states.hidden[0])
        stream.run_block(block, states)
    backward = GradientStream(stream)
    at, head = backward.from_logits(states, 0, states.hidden[0], SCORED, lambda logits, out: out.copy_(gradient))
    stream.free()
    found: dict[str, Tensor] = {}
    for block in reversed(range(stream.block_count)):
        layers = [layer for layer in source.layers if layer.block == block]
        with stream.loaded(block):
            at, factors = backward.through_block(block, states, 0, entered[block], at, layers)
        found |= {name: factor.gradients.T @ factor.inputs for name, factor in factors.items()}
    present, rows = backward.at_embedding(states, 0, at)
    stream.free()
    for layer in source.layers:
        if layer.kind in ("embedding", "tied"):
            found[layer.name] = torch.zeros(layer.shape).index_copy(0, present, rows)
        if layer.kind in ("head", "tied") and head is not None:
            own = head.gradients.T @ head.inputs
            found[layer.name] = found[layer.name] + own if layer.kind == "tied" else own
    return found


@pytest.mark.parametrize("name", [*zoo.ARCHITECTURES, *zoo.HELD_OUT, *zoo.MIXTURES])
def test_equals_autograd(name: str, tmp_path: Path) -> None:
    source = SourceModel.open(zoo.make_model(name, tmp_path))
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, zoo.VOCABULARY, (TOKENS,), generator=generator)
    gradient = torch.randn(TOKENS - 2, zoo.VOCABULARY, generator=generator)
    found = streamed(source, ids, gradient)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    model(ids[None]).logits[0][SCORED].backward(gradient)
    assert found.keys() == {layer.name for layer in source.layers}
    for layer in source.layers:
        expected = model.get_submodule(layer.module).weight.grad
        expected = expected.T if layer.transposed else expected
        assert expected.norm() > 0, layer.name
        torch.testing.assert_close(found[layer.name], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
