"""A layer with maps or an activation format is no plain matrix, and is never read as one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bitbudget.checkpoint.native import NativeConfig, NativeWeights
from bitbudget.checkpoint.read import Checkpoint
from bitbudget.checkpoint.write import ShardWriter, plan_shards
from bitbudget.errors import InputError
from bitbudget.rounding import nearest
from bitbudget.storage import NATIVE, Activation, Choice


@pytest.mark.parametrize(
    "changes", [{"input_map": "scale"}, {"output_map": "scale"}, {"activation": Activation(8)}, {}]
)
def test_only_plain_matrices_are_read(tmp_path: Path, changes: dict[str, object]) -> None:
    weight = nearest(torch.randn(8, 16, generator=torch.Generator().manual_seed(0)), Choice.parse("int4:g8"))
    choice = replace(weight.choice, **changes)
    tensors = weight.tensors() | {"input_map.scale": torch.ones(16), "output_map.scale": torch.ones(8)}
    specs = tuple(spec.under("layer") for spec in NATIVE.specs(choice, (8, 16)))
    (shard,) = plan_shards([specs], 10**9)
    with ShardWriter(tmp_path, shard) as writer:
        for spec in specs:
            writer.write(spec.name, tensors[spec.name.removeprefix("layer.")])
    weights = NativeWeights(Checkpoint.open(tmp_path), NativeConfig({"layer": choice}), {"layer": (8, 16)})
    if not changes:
        assert torch.equal(weights.tensor("layer.weight"), weight.dequantize())
        return
    for read in (lambda: weights.tensor("layer.weight"), lambda: weights.rows("layer.weight", torch.tensor([1]))):
        with pytest.raises(InputError, match="layer is stored as"):
            read()
