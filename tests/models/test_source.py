"""What opening a model finds: layers, ties, and a reason for everything else."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from bitbudget.checkpoint.read import Checkpoint
from bitbudget.errors import InputError
from bitbudget.models.source import SourceModel
from zoo import ARCHITECTURES, HELD_OUT, MIXTURES, VOCABULARY, WIDTH

ALL = [*ARCHITECTURES, *HELD_OUT, *MIXTURES]
LINEARS_A_BLOCK = {"phi": 6, "opt": 6, "gpt2": 4, "phi3": 4, "gpt_neox": 4, "mixtral": 4, "qwen3_moe": 4}
TIED = {"llama_tied", "qwen3", "gemma2", "gemma3", "opt", "gpt2", "smollm3"}


@pytest.mark.parametrize("name", ALL)
def test_every_tensor_is_exactly_one_layer_or_passes_through(zoo, name):
    source = SourceModel.open(zoo(name))
    found = [layer.tensor for layer in source.layers] + [entry.tensor for entry in source.passthrough]
    assert sorted(found) == sorted(source.checkpoint.tensors)
    assert all(entry.reason for entry in source.passthrough)


@pytest.mark.parametrize("name", ALL)
def test_all_linears_of_the_blocks_are_layers_in_order(zoo, name):
    source = SourceModel.open(zoo(name))
    linears = [layer for layer in source.layers if layer.kind == "linear"]
    assert len(linears) == source.block_count * LINEARS_A_BLOCK.get(name, 7)
    assert [layer.block for layer in linears] == sorted(layer.block for layer in linears)
    for layer in linears:
        module = source.model.get_submodule(layer.module)
        assert isinstance(module, nn.Linear | Conv1D)
        assert layer.transposed == (name == "gpt2")
        assert layer.shape == (tuple(module.weight.shape) if not layer.transposed else tuple(module.weight.shape)[::-1])
        assert f"{layer.name}.weight" == layer.tensor
        assert (layer.bias is not None) == (module.bias is not None)
        assert layer.bias is None or layer.bias in source.checkpoint.tensors


@pytest.mark.parametrize("name", ALL)
def test_embedding_and_head(zoo, name):
    kinds = [layer.kind for layer in SourceModel.open(zoo(name)).layers if layer.kind != "linear"]
    assert kinds == (["tied"] if name in TIED else ["embedding", "head"])


def test_dtype_and_shape_come_from_the_file(zoo):
    source = SourceModel.open(zoo("llama", dtype=torch.bfloat16, shards=4))
    assert len(source.checkpoint.files) > 3
    assert {layer.dtype for layer in source.layers} == {torch.bfloat16}
    assert source.layers[0].shape == source.layers[-1].shape == (VOCABULARY, WIDTH)


def test_parameters_are_on_meta_buffers_are_real_and_no_weight_is_read(zoo, monkeypatch):
    def refuse(*_):
        raise AssertionError("a weight was read")

    monkeypatch.setattr(Checkpoint, "_read_into", refuse)
    model = SourceModel.open(zoo("gemma3")).model
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    assert any("inv_freq" in name for name, _ in model.named_buffers())
    assert not model.training


def test_reasons_are_told_in_plain_words(zoo):
    reasons = {entry.tensor: entry.reason for entry in SourceModel.open(zoo("opt")).passthrough}
    assert reasons["model.decoder.embed_positions.weight"] == "position embedding"
    assert reasons["model.decoder.layers.0.fc1.bias"] == "bias"
    assert reasons["model.decoder.final_layer_norm.weight"] == "norm gain"
    assert reasons["model.decoder.project_in.weight"] == "linear outside the decoder blocks"


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_and_routers_pass_through(zoo, name):
    source = SourceModel.open(zoo(name))
    assert all("self_attn" in layer.name for layer in source.layers if layer.kind == "linear")
    reasons = {entry.tensor: entry.reason for entry in source.passthrough}
    assert all("mixture-of-experts" in reason for tensor, reason in reasons.items() if ".experts." in tensor)
    assert [reason for tensor, reason in reasons.items() if tensor.endswith(".gate.weight")] == [
        "router or gate of a mixture of experts"
    ] * source.block_count


def test_a_vision_tower_passes_through(vision_model):
    source = SourceModel.open(vision_model)
    assert len(source.layers) == 1 + 3 * 7
    assert source.places.blocks == "model.language_model.layers"
    reasons = {entry.tensor: entry.reason for entry in source.passthrough}
    assert all(
        ("outside the text decoder" in reason) == ("language_model" not in tensor) for tensor, reason in reasons.items()
    )


def test_names_are_those_of_the_file_where_it_lacks_the_prefix(edited):
    folder = edited("gpt2", lambda tensors: {name.removeprefix("transformer."): t for name, t in tensors.items()})
    source = SourceModel.open(folder)
    assert [layer.name for layer in source.layers][:2] == ["wte", "h.0.attn.c_attn"]
    assert source.layers[1].module == "transformer.h.0.attn.c_attn"
    assert source.layers[1].bias == "h.0.attn.c_attn.bias"


def test_tie_stored_under_the_heads_name_only(edited):
    def rename(tensors):
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
        return tensors

    layer = SourceModel.open(edited("llama_tied", rename)).layers[0]
    assert (layer.name, layer.kind) == ("lm_head", "tied")


def test_tie_stored_twice_is_one_layer(edited):
    def repeat(tensors):
        return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}

    source = SourceModel.open(edited("llama_tied", repeat))
    assert [(layer.name, layer.kind) for layer in source.layers if layer.kind != "linear"] == [
        ("model.embed_tokens", "tied")
    ]
    repeated = {entry.tensor: entry.duplicate_of for entry in source.passthrough if entry.duplicate_of}
    assert repeated == {"lm_head.weight": "model.embed_tokens.weight"}


def test_two_different_matrices_are_not_tied_whatever_the_config_says(edited):
    def differ(tensors):
        return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}

    kinds = [layer.kind for layer in SourceModel.open(edited("llama_tied", differ)).layers]
    assert (kinds[0], kinds[-1]) == ("embedding", "head")


def test_what_the_model_class_does_not_know_passes_through(edited):
    extra = {
        "model.layers.3.eh_proj.weight": torch.ones(4, 4),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
    }
    source = SourceModel.open(edited("llama", lambda tensors: tensors | extra))
    reasons = {entry.tensor: entry.reason for entry in source.passthrough}
    assert all(reasons[name].startswith("not used by the model class") for name in extra)


def test_missing_tensors_are_named(edited):
    def lose(tensors):
        del tensors["model.layers.1.mlp.up_proj.weight"], tensors["model.norm.weight"]
        return tensors

    with pytest.raises(InputError, match=r"lacks 2 of the 30 .*layers\.1\.mlp\.up_proj\.weight.*model\.norm\.weight"):
        SourceModel.open(edited("llama", lose))


def test_a_missing_expert_is_named(edited):
    def lose(tensors):
        del tensors["model.layers.1.mlp.experts.2.down_proj.weight"]
        return tensors

    with pytest.raises(InputError, match=r"layers\.1\.mlp\.experts.*\(3, .*\(4, "):
        SourceModel.open(edited("qwen3_moe", lose))


def test_shapes_that_do_not_fit_are_named(edited):
    with pytest.raises(InputError, match=r"layers\.0\.self_attn\.o_proj\.weight.*\(64, 64\).*\(64, 32\)"):
        SourceModel.open(edited("llama", config=lambda raw: raw | {"num_attention_heads": 2, "head_dim": 16}))


def test_a_folder_of_ours_stands_for_the_original_layers(edited):
    stored = "model.layers.0.self_attn.q_proj"

    def pack(tensors):
        del tensors[f"{stored}.weight"]
        return tensors | {f"{stored}.dense.codes": torch.zeros(64, 8, dtype=torch.int32)}

    def mark(raw):
        return raw | {"quantization_config": {"quant_method": "bitbudget", "layers": {stored: 0}}}

    folder = edited("qwen2", pack, mark)
    source = SourceModel.open(folder, allow_native=True)
    assert len(source.layers) == 3 * 7 + 2
    assert source.layers[1].name == stored and source.layers[1].shape == (64, 64)
    assert source.layers[1].bias == f"{stored}.bias"
    assert f"{stored}.bias" in {entry.tensor for entry in source.passthrough}
    assert not hasattr(source.config, "quantization_config")
    with pytest.raises(InputError, match="already quantized .*'bitbudget'"):
        SourceModel.open(folder)


def test_opening_leaves_random_state_and_threads_alone(zoo):
    folder = zoo("mixtral")
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    SourceModel.open(folder)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
