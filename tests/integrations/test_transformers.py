"""A finished checkpoint through transformers: the same logits as the decoded weights, saved and loaded again."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaForCausalLM

import bitbudget  # noqa: F401 -- registers
from bitbudget.integrations.loading import load
from bitbudget.kernels.linear import QuantEmbedding, QuantLinear, TiedLinear
from integrations.written import (
    TABLES,
    dense_twin,
    logits,
    read_config,
    read_tensors,
    write_config,
    write_native,
    write_tensors,
)
from zoo import ARCHITECTURES, HELD_OUT, MIXTURES, make_model

LINEAR = {"linear": "int4"}
NEAR = {"atol": 1e-5, "rtol": 1e-5}
pytestmark = pytest.mark.usefixtures("reference_kernels")


def assert_saved_again(model, folder: Path, output: Path) -> None:
    """What the model saves loads with the same tensors and gives the same logits."""
    model.save_pretrained(output)
    again = AutoModelForCausalLM.from_pretrained(output)
    assert torch.equal(logits(again), logits(model))
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    first, second = read_config(folder), read_config(output)
    assert first["quantization_config"].keys() == second["quantization_config"].keys()
    assert first.get("tie_word_embeddings") == second.get("tie_word_embeddings")
    names = second["quantization_config"]["layers"]
    assert {f"{layer}.weight" for layer in names} <= read_tensors(output).keys()  # as our own reader looks for them


@pytest.mark.parametrize("name", [*ARCHITECTURES, *HELD_OUT, *MIXTURES])
def test_every_architecture_gives_the_logits_of_its_decoded_weights(name: str, tmp_path: Path) -> None:
    source = make_model(name, tmp_path / "source")
    stored = write_native(source, tmp_path / "native", LINEAR | TABLES)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "native")
    torch.testing.assert_close(logits(model), logits(dense_twin(source, stored)), **NEAR)
    quantized = [module for module in model.modules() if isinstance(module, QuantLinear | QuantEmbedding)]
    assert len(quantized) == len(stored)
    assert_saved_again(model, tmp_path / "native", tmp_path / "again")
    written, again = read_tensors(tmp_path / "native"), read_tensors(tmp_path / "again")
    assert written.keys() == again.keys()
    assert all(torch.equal(written[name], again[name]) for name in written)


@pytest.mark.parametrize(
    "choices",
    [
        {"embedding": "int8"},
        {"head": "int4"},
        {"linear": "int8*10%|int4", "head": "int6s"},
        {"linear": "int2+outliers:2%", "embedding": "int4:scale=fp32"},
        {"model.layers.1.mlp.up_proj": "int3:g16:zero=real", "head": "int4:g16:out*64|int8"},
        {"linear": "int3:zeros=byte:scale=bf16"},
    ],
    ids=lambda choices: "-".join(choices),
)
def test_any_layer_may_be_stored_in_any_way(choices: dict[str, str], tmp_path: Path) -> None:
    source = make_model("llama", tmp_path / "source")
    stored = write_native(source, tmp_path / "native", choices, max_shard_bytes=60_000)
    assert len(list((tmp_path / "native").glob("*.safetensors"))) > 1
    model = load(tmp_path / "native")
    torch.testing.assert_close(logits(model), logits(dense_twin(source, stored)), **NEAR)
    assert_saved_again(model, tmp_path / "native", tmp_path / "again")


@pytest.mark.parametrize("choices", [{"tied": "int8"}, LINEAR], ids=["only the tied matrix", "all but the tied matrix"])
@pytest.mark.parametrize("name", ["gpt2", "gemma3", "llama_tied"])
def test_a_tied_matrix_is_stored_or_kept(name: str, choices: dict[str, str], tmp_path: Path) -> None:
    source = make_model(name, tmp_path / "source")
    stored = write_native(source, tmp_path / "native", choices)
    model = load(tmp_path / "native")
    torch.testing.assert_close(logits(model), logits(dense_twin(source, stored)), **NEAR)
    assert isinstance(model.get_output_embeddings(), TiedLinear) == ("tied" in choices)
    assert model.config.tie_word_embeddings
    model.tie_weights()  # as callers may, at any time
    torch.testing.assert_close(logits(model), logits(dense_twin(source, stored)), **NEAR)
    assert_saved_again(model, tmp_path / "native", tmp_path / "again")


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "opt"])
def test_names_without_the_prefix_of_the_base_model(name: str, tmp_path: Path) -> None:
    source = make_model(name, tmp_path / "source")
    prefix = {"gpt2": "transformer", "gpt_neox": "gpt_neox", "opt": "model"}[name]
    tensors = {key.removeprefix(f"{prefix}."): tensor for key, tensor in read_tensors(source).items()}
    write_tensors(source, tensors)
    stored = write_native(source, tmp_path / "native", LINEAR | TABLES)
    assert not any(layer.startswith(prefix) for layer in stored)
    model = load(tmp_path / "native")
    torch.testing.assert_close(logits(model), logits(dense_twin(source, stored)), **NEAR)
    assert_saved_again(model, tmp_path / "native", tmp_path / "again")


def test_a_tied_matrix_under_the_name_of_the_head(tmp_path: Path) -> None:
    source = make_model("llama_tied", tmp_path / "source")
    tensors = read_tensors(source)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    write_tensors(source, tensors)
    stored = write_native(source, tmp_path / "native", LINEAR | TABLES)
    assert "lm_head" in stored
    model = load(tmp_path / "native")
    torch.testing.assert_close(logits(model), logits(dense_twin(source, stored)), **NEAR)
    assert_saved_again(model, tmp_path / "native", tmp_path / "again")


@pytest.mark.parametrize(
    "choices", [TABLES, {"embedding": "int8"}, {"head": "int8"}], ids=lambda choices: "-".join(choices)
)
def test_two_different_matrices_that_the_config_calls_tied(choices: dict[str, str], tmp_path: Path) -> None:
    source = make_model("llama_tied", tmp_path / "source")
    tensors = read_tensors(source)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).contiguous()
    write_tensors(source, tensors)
    stored = write_native(source, tmp_path / "native", choices)
    model = load(tmp_path / "native")
    torch.testing.assert_close(logits(model), logits(dense_twin(source, stored)), **NEAR)
    assert_saved_again(model, tmp_path / "native", tmp_path / "again")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *(("gemma3", dtype) for dtype in ("auto", "float32", torch.bfloat16, torch.float16)),
        ("phi", "auto"),
        ("gpt2", torch.float16),
    ],
    ids=str,
)
def test_dtypes(name: str, dtype: str | torch.dtype, tmp_path: Path) -> None:
    source = make_model(name, tmp_path / "source", dtype=torch.bfloat16)
    stored = write_native(source, tmp_path / "native", LINEAR | TABLES)
    model = load(tmp_path / "native", dtype=dtype)
    expected = {"auto": torch.bfloat16, "float32": torch.float32}.get(str(dtype), dtype)
    assert model.dtype == expected == model.config.dtype
    result = logits(model)
    assert result.dtype == expected
    dense = logits(dense_twin(source, stored, expected))
    # Decoding rounds to the dtype of the activations as a loaded dense weight was rounded, so nothing may differ but
    # the rounding before a bias is added.
    assert torch.equal(result, dense) or name != "gemma3"
    assert (result - dense).float().abs().mean() < 0.03
    written, held = read_tensors(tmp_path / "native"), model.state_dict()
    parts = [name for layer in stored for name in written if name.startswith(f"{layer}.") and name in held]
    parts = [name for name in parts if not name.endswith((".bias", ".weight"))]
    assert len(parts) >= len(stored)
    assert all(held[name].dtype == written[name].dtype and torch.equal(held[name], written[name]) for name in parts)
    if dtype == "auto":
        assert_saved_again(model, tmp_path / "native", tmp_path / "again")


def test_torch_dtype_is_the_older_word(tmp_path: Path) -> None:
    write_native(make_model("llama", tmp_path / "source"), tmp_path / "native", LINEAR)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "native", torch_dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"model": "cpu", "lm_head": "cpu"}, {"": "disk"}], ids=str)
def test_device_maps(device_map: str | dict[str, str], tmp_path: Path) -> None:
    source = make_model("llama_tied", tmp_path / "source")
    stored = write_native(source, tmp_path / "native", LINEAR | TABLES)
    model = load(tmp_path / "native", device_map=device_map, offload_folder=tmp_path)
    torch.testing.assert_close(logits(model), logits(dense_twin(source, stored)), **NEAR)


def test_a_copy_of_a_model_keeps_its_own_tie(tmp_path: Path) -> None:
    write_native(make_model("llama_tied", tmp_path / "source"), tmp_path / "native", LINEAR | TABLES)
    model = load(tmp_path / "native")
    twin = copy.deepcopy(model)
    assert twin.lm_head.embedding is twin.model.embed_tokens is not model.model.embed_tokens
    assert torch.equal(logits(twin), logits(model))


def test_generates_as_the_decoded_weights_do(tmp_path: Path) -> None:
    source = make_model("gemma3", tmp_path / "source")
    stored = write_native(source, tmp_path / "native", LINEAR | TABLES)
    prompt = torch.tensor([[5, 6, 7]])
    settings = {"max_new_tokens": 20, "do_sample": False}
    generated = load(tmp_path / "native").generate(prompt, **settings)
    assert torch.equal(generated, dense_twin(source, stored).generate(prompt, **settings))


@pytest.mark.parametrize("name", ["llama", "gpt2", "llama_tied"])
def test_the_base_model_loads_without_the_head(name: str, tmp_path: Path) -> None:
    source = make_model(name, tmp_path / "source")
    stored = write_native(source, tmp_path / "native", LINEAR | TABLES)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        states = AutoModel.from_pretrained(tmp_path / "native")(ids).last_hidden_state
        expected = dense_twin(source, stored).base_model(ids).last_hidden_state
    torch.testing.assert_close(states, expected, **NEAR)


def test_memory_holds_the_bytes_of_the_file_and_no_more(tmp_path: Path) -> None:
    source = make_model("llama_tied", tmp_path / "source", dtype=torch.bfloat16)
    write_native(source, tmp_path / "native", LINEAR | TABLES)
    model = load(tmp_path / "native")
    in_file = sum(tensor.nbytes for tensor in read_tensors(tmp_path / "native").values())
    computed = sum(buffer.nbytes for name, buffer in model.named_buffers() if "rotary" in name)  # not in any file
    for _ in range(2):  # before and after running it
        held = {id(tensor): tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]}
        assert sum(held.values()) - computed == in_file
        logits(model)
    assert model.get_memory_footprint() - computed == in_file


def test_stored_tensors_survive_modules_that_transformers_keeps_in_fp32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LlamaForCausalLM, "_keep_in_fp32_modules_strict", ["mlp"])
    write_native(make_model("llama", tmp_path / "source"), tmp_path / "native", LINEAR)
    model = load(tmp_path / "native", dtype=torch.bfloat16)
    written = read_tensors(tmp_path / "native")
    layer = "model.layers.1.mlp.up_proj"
    module = model.get_submodule(layer)
    assert module.weight.dtype == torch.float32
    assert all(torch.equal(written[f"{layer}.{name}"], value) for name, value in module.stored().tensors().items())
    assert module.get_buffer("dense.scale").dtype == torch.float16


def test_a_model_that_moves_to_another_dtype_keeps_its_scales(tmp_path: Path) -> None:
    source = make_model("gemma3", tmp_path / "source")
    stored = write_native(source, tmp_path / "native", LINEAR | TABLES)
    model = load(tmp_path / "native").to(torch.bfloat16)
    assert torch.equal(logits(model), logits(dense_twin(source, stored).to(torch.bfloat16)))


def test_the_dtype_of_a_config_that_names_none(tmp_path: Path) -> None:
    source = make_model("llama", tmp_path / "source", dtype=torch.bfloat16)
    write_native(source, tmp_path / "native", LINEAR)
    config = read_config(tmp_path / "native")
    config.pop("dtype")
    write_config(tmp_path / "native", config)
    assert load(tmp_path / "native").dtype == torch.bfloat16
