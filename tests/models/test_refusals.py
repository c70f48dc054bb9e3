"""Models that cannot be read: each has its own message, which says what to do."""

import json

import pytest
import torch
from transformers import BartConfig, T5Config, ViTConfig

from bitbudget.errors import InputError
from bitbudget.models.source import SourceModel


def refusal(folder, **options) -> str:
    with pytest.raises(InputError) as caught:
        SourceModel.open(folder, **options)
    return str(caught.value)


def test_unknown_architecture(edited):
    message = refusal(edited("llama", config=lambda raw: raw | {"model_type": "zebra"}))
    assert "'zebra'" in message and "transformers 5" in message and "newer transformers" in message


def test_unknown_architecture_with_own_code(edited):
    own = {"model_type": "zebra", "auto_map": {"AutoConfig": "zebra.ZebraConfig"}}
    assert "--trust-remote-code" in refusal(edited("llama", config=lambda raw: raw | own))


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "bitsandbytes", "bitbudget"])
def test_already_quantized(edited, method):
    message = refusal(
        edited("llama", config=lambda raw: raw | {"quantization_config": {"quant_method": method, "bits": 4}})
    )
    assert f"quant_method '{method}'" in message and "original" in message


def test_only_our_own_quantized_folder_may_be_opened(edited):
    folder = edited("llama", config=lambda raw: raw | {"quantization_config": {"quant_method": "gptq"}})
    assert "'gptq'" in refusal(folder, allow_native=True)


def test_quantized_by_an_older_tool(edited):
    folder = edited("llama")
    (folder / "quantize_config.json").write_text("{}")
    assert "already quantized (it holds quantize_config.json)" in refusal(folder)


def test_integer_weights_without_a_word_in_the_config(edited):
    def to_integers(tensors):
        name = "model.layers.0.mlp.up_proj.weight"
        return tensors | {name: tensors[name].to(torch.int8)}

    assert "'model.layers.0.mlp.up_proj.weight' has dtype int8" in refusal(edited("llama", to_integers))


def test_pickle_only(zoo, tmp_path):
    (tmp_path / "config.json").write_bytes((zoo("llama") / "config.json").read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    message = refusal(tmp_path)
    assert "pickle" in message and "save_pretrained" in message


def test_no_config(edited):
    folder = edited("llama")
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model_type": 3}'])
def test_damaged_config(edited, text):
    folder = edited("llama")
    (folder / "config.json").write_text(text)
    assert str(folder / "config.json") in refusal(folder)


@pytest.mark.parametrize("config", [T5Config(), BartConfig()])
def test_encoder_decoder(edited, config):
    folder = edited("llama")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    assert "encoder-decoder" in refusal(folder)


def test_a_model_without_text_output(edited):
    folder = edited("llama")
    (folder / "config.json").write_text(json.dumps(ViTConfig().to_dict()))
    assert "'vit'" in refusal(folder)


def test_a_config_that_transformers_refuses(edited):
    assert "transformers" in refusal(edited("llama", config=lambda raw: raw | {"hidden_size": "many"}))


def test_a_folder_that_is_not_there(tmp_path):
    assert "There is no folder" in refusal(tmp_path / "nothing")


def test_a_file_in_place_of_a_folder(zoo):
    assert "is a file" in refusal(zoo("llama") / "config.json")


def test_hub_id_without_network(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    message = refusal("someone/some-model-that-is-not-cached")
    assert "'someone/some-model-that-is-not-cached'" in message and "offline" in message


def test_hub_id_goes_through_the_hub_with_weights_as_safetensors_only(zoo, monkeypatch):
    asked = {}

    def download(hub_id, allow_patterns):
        asked.update(hub_id=hub_id, patterns=allow_patterns)
        return str(zoo("llama"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert SourceModel.open("someone/model").folder == zoo("llama")
    assert asked["hub_id"] == "someone/model"
    assert "*.safetensors" in asked["patterns"] and not any("bin" in pattern for pattern in asked["patterns"])
