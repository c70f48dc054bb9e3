"""What does not fit is refused with the layer's name, before transformers fills anything."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.bart.modeling_bart import BartScaledWordEmbedding
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from bitbudget.errors import InputError
from bitbudget.integrations.loading import load
from bitbudget.integrations.replacement import multiplier, replacement
from bitbudget.integrations.transformers import BitbudgetConfig
from bitbudget.kernels.linear import QuantEmbedding, QuantLinear
from bitbudget.storage import Choice
from integrations.written import TABLES, read_config, read_tensors, write_config, write_native, write_tensors
from zoo import make_model

LAYER = "model.layers.1.mlp.up_proj"
INT8 = Choice.parse("int8")
Tensors = dict[str, Tensor]


@pytest.fixture
def native(tmp_path: Path) -> Path:
    write_native(make_model("llama", tmp_path / "source"), tmp_path / "native", {"linear": "int4"} | TABLES)
    return tmp_path / "native"


def refusal(folder: Path) -> str:
    """The message, which is the same whoever loads."""
    with pytest.raises(InputError) as ours:
        load(folder)
    with pytest.raises(InputError) as theirs:
        AutoModelForCausalLM.from_pretrained(folder)
    assert str(ours.value) == str(theirs.value)
    return str(ours.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tensors: tensors.pop(f"{LAYER}.dense.scale"), "in none of the files"),
        (lambda tensors: tensors.update({f"{LAYER}.dense.codes": torch.zeros(150, 7, dtype=torch.int32)}), "has to be"),
        (lambda tensors: tensors.update({f"{LAYER}.dense.scale": torch.ones(150, 1)}), "has to be torch.float16"),
        (lambda tensors: tensors.update({f"{LAYER}.weight": torch.ones(150, 64)}), "has to be"),
        (lambda tensors: tensors.update({f"{LAYER}.outliers.values": torch.ones(3)}), "no tensor of a layer"),
    ],
    ids=["missing", "another shape", "another dtype", "a whole weight", "one too many"],
)
def test_tensors_that_do_not_fit(native: Path, change: Callable[[Tensors], Any], reason: str) -> None:
    tensors = read_tensors(native)
    change(tensors)
    write_tensors(native, tensors)
    message = refusal(native)
    assert LAYER in message
    assert reason in message


def test_a_layer_that_the_model_does_not_have(native: Path) -> None:
    config = read_config(native)
    layers = config["quantization_config"]["layers"]
    layers["model.layers.7.mlp.up_proj"] = layers.pop(LAYER)
    write_config(native, config)
    assert "model.layers.7.mlp.up_proj" in refusal(native)


def test_a_layer_that_is_no_matrix(native: Path) -> None:
    config = read_config(native)
    config["quantization_config"]["layers"]["model.norm"] = 0
    write_config(native, config)
    assert "model.norm is a LlamaRMSNorm" in refusal(native)


def test_a_choice_that_does_not_fit_the_layer(native: Path) -> None:
    config = read_config(native)
    config["quantization_config"]["choices"] = [
        "int4:g48" if text == "int4" else text for text in config["quantization_config"]["choices"]
    ]
    write_config(native, config)
    assert "not divisible by the group size 48" in refusal(native)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"format_version": 2}, "Update bitbudget"),
        ({"format_version": "1"}, "format_version"),
        ({"choices": ["int9"]}, "is not understood"),
        ({"layers": None}, "damaged"),
        ({"layers": {}}, "names no quantized layer"),
    ],
    ids=lambda value: str(value),
)
def test_configs_that_cannot_be_read(native: Path, settings: dict[str, Any], reason: str) -> None:
    config = read_config(native)
    config["quantization_config"] |= settings
    write_config(native, config)
    assert reason in refusal(native)


def test_a_config_keeps_exactly_its_keys(native: Path) -> None:
    stored = read_config(native)["quantization_config"]
    config = BitbudgetConfig.from_dict(stored | {"later": 1})
    assert config.to_dict() == config.to_diff_dict() == stored
    assert dict(config) == stored


def test_a_parameter_that_is_not_quantized_is_missing(native: Path) -> None:
    tensors = read_tensors(native)
    del tensors["model.layers.2.input_layernorm.weight"]
    write_tensors(native, tensors)
    with pytest.raises(InputError, match="model.layers.2.input_layernorm.weight"):
        load(native)


def test_a_folder_that_is_not_quantized(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no quantization_config"):
        load(make_model("llama", tmp_path))


def test_a_state_dict_instead_of_files(native: Path) -> None:
    config = LlamaConfig.from_pretrained(native)
    with pytest.raises(InputError, match="safetensors files"):
        LlamaForCausalLM.from_pretrained(None, config=config, state_dict=read_tensors(native))


def test_a_model_that_is_not_quantized_yet_is_not_quantized_by_the_way(native: Path, tmp_path: Path) -> None:
    config = BitbudgetConfig(**read_config(native)["quantization_config"])
    with pytest.raises(ValueError, match="pre-quantized"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "source", quantization_config=config)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Normed(nn.Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.normalize(super().forward(ids), dim=-1)


def test_embeddings_that_scale() -> None:
    with torch.device("meta"):
        plain, number = nn.Embedding(9, 4), BartScaledWordEmbedding(9, 4, 0, embed_scale=3.3)
        rounded, normed = Gemma3TextScaledWordEmbedding(9, 4, 0, embed_scale=3.3), Normed(9, 4)
        assert multiplier(plain) == 1.0
        assert multiplier(number) == 3.3
        assert isinstance(multiplier(rounded), Tensor)
        with pytest.raises(InputError, match="Normed"):
            multiplier(normed)
    module = replacement(rounded, INT8, (9, 4))
    assert isinstance(module, QuantEmbedding)
    assert module.multiplier.device.type == "cpu"


def test_linears_that_compute_something_else() -> None:
    with torch.device("meta"):
        assert isinstance(replacement(FalconLinear(6, 5, bias=True), INT8, (5, 6)), QuantLinear)
        with pytest.raises(InputError, match="Doubled"):
            replacement(Doubled(6, 5), INT8, (5, 6))
