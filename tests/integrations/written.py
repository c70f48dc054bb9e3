"""Finished checkpoints for these tests: zoo models rounded to nearest and written by the checkpoint floor alone."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from bitbudget.checkpoint.native import NativeConfig
from bitbudget.checkpoint.read import Checkpoint
from bitbudget.checkpoint.write import ShardWriter, index_json, plan_shards, write_atomic
from bitbudget.models.source import SourceModel
from bitbudget.rounding import nearest
from bitbudget.storage import Choice, StoredWeight, TensorSpec

LINEAR = "int4"
TABLES = {"embedding": "int8", "tied": "int8", "head": "int6"}


def write_native(
    source: Path, output: Path, choices: Mapping[str, str], max_shard_bytes: int = 10**9
) -> dict[str, StoredWeight]:
    """Write `source` with the choice of every kind of layer (kinds not named stay); returns the stored weights.

    A choice may also be given for one layer by its name.
    """
    model = SourceModel.open(source)
    stored: dict[str, StoredWeight] = {}
    tensors: dict[str, Tensor] = {
        entry.tensor: model.checkpoint.read(entry.tensor) for entry in model.passthrough if not entry.duplicate_of
    }
    for layer in model.layers:
        text = choices.get(layer.name, choices.get(layer.kind))
        tensor = model.checkpoint.read(layer.tensor)
        if text is None:
            tensors[layer.tensor] = tensor
            continue
        weight = nearest(tensor.T if layer.transposed else tensor, Choice.parse(text))
        stored[layer.name] = weight
        tensors |= {f"{layer.name}.{name}": value for name, value in weight.tensors().items()}
    output.mkdir(parents=True, exist_ok=True)
    write_tensors(output, tensors, max_shard_bytes)
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        if (source / name).is_file():
            shutil.copy(source / name, output / name)
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = NativeConfig({name: weight.choice for name, weight in stored.items()}).to_dict()
    write_config(output, config)
    return stored


def write_tensors(output: Path, tensors: Mapping[str, Tensor], max_shard_bytes: int = 10**9) -> None:
    """Write safetensors files and, where there are several, their index."""
    specs = [(TensorSpec(name, tensor.dtype, tuple(tensor.shape)),) for name, tensor in tensors.items()]
    shards = plan_shards(specs, max_shard_bytes)
    for shard in shards:
        with ShardWriter(output, shard) as writer:
            for spec in shard.specs:
                writer.write(spec.name, tensors[spec.name])
    if len(shards) > 1:
        write_atomic(output / "model.safetensors.index.json", index_json(shards))


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder."""
    with Checkpoint.open(folder) as checkpoint:
        return {name: checkpoint.read(name) for name in checkpoint.tensors}


def read_config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def write_config(folder: Path, config: dict) -> None:
    write_atomic(folder / "config.json", json.dumps(config).encode())


def dense_twin(source: Path, stored: Mapping[str, StoredWeight], dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """transformers' own model of the source, its weights replaced by the decoded ones."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    for layer in SourceModel.open(source).layers:
        if layer.name in stored:
            weight = stored[layer.name].dequantize()
            with torch.no_grad():
                model.get_submodule(layer.module).weight.copy_(weight.T if layer.transposed else weight)
    return model


def logits(model: PreTrainedModel) -> Tensor:
    """Logits of two fixed sequences."""
    ids = torch.arange(2 * 21).view(2, 21) * 11 % model.config.get_text_config().vocab_size
    with torch.no_grad():
        return model(ids, use_cache=False).logits
