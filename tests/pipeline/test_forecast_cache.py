"""The key-value cache of the forecast against what transformers' own DynamicCache holds after a forward."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Lfm2Config,
    MambaConfig,
    PreTrainedConfig,
    Qwen3NextConfig,
)

from bitbudget.models.source import SourceModel
from bitbudget.pipeline import cache_size
from bitbudget.pipeline.cache_size import KV_DTYPES, kv_cache
from zoo import ARCHITECTURES, MIXTURES, WINDOW, make_model

NAMES = ("llama", "mistral", "gemma2", "gemma3", "qwen2", "qwen3", "gpt2", "opt", "phi", "phi3", "smollm3", "mixtral")


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert request.param in {**ARCHITECTURES, **MIXTURES}
    return make_model(request.param, tmp_path_factory.mktemp(request.param))


def test_bytes_are_those_of_the_model_s_own_cache(folder: Path) -> None:
    source = SourceModel.open(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for context in (5, WINDOW - 1, WINDOW, WINDOW + 1, 40):
        with torch.no_grad():
            cache = model(input_ids=torch.arange(context)[None], use_cache=True).past_key_values
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        assert kv_cache(source, context, "fp32").nbytes == held


def test_the_dtype_scales_the_bytes(tmp_path: Path) -> None:
    source = SourceModel.open(make_model("llama", tmp_path))
    found = {dtype: kv_cache(source, 100, dtype).nbytes for dtype in KV_DTYPES}
    assert found == {dtype: 3 * 2 * 100 * 2 * 16 * size for dtype, size in KV_DTYPES.items()}


def test_blocks_of_one_kind_are_one_group(tmp_path: Path) -> None:
    found = kv_cache(SourceModel.open(make_model("gemma3", tmp_path)), 100)
    assert [(group.blocks, group.window, group.tokens) for group in found.groups] == [(2, WINDOW, 11), (2, None, 100)]
    assert found.nbytes == sum(group.nbytes for group in found.groups)


def test_without_a_wish_the_context_is_the_model_s_but_not_beyond_8192(tmp_path: Path) -> None:
    source = SourceModel.open(make_model("llama", tmp_path))
    assert kv_cache(source).context == 256
    source.config.max_position_embeddings = 131_072
    assert kv_cache(source).context == 8192
    assert kv_cache(source, 100_000).context == 100_000


SMALL = {"vocab_size": 503, "hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 96}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (DeepseekV3Config(**SMALL, num_attention_heads=4, num_key_value_heads=4, n_routed_experts=8), "latent"),
        (MambaConfig(vocab_size=503, hidden_size=64, num_hidden_layers=3), "number of attention heads"),
        (Qwen3NextConfig(**SMALL, num_attention_heads=4, num_key_value_heads=2), "linear_attention"),
        (
            Lfm2Config(
                **SMALL, layer_types=["conv", "full_attention", "conv"], num_attention_heads=4, num_key_value_heads=2
            ),
            "conv",
        ),
    ],
    ids=["deepseek_v3", "mamba", "qwen3_next", "lfm2"],
)
def test_what_the_config_does_not_tell_is_not_known(tmp_path: Path, config: PreTrainedConfig, reason: str) -> None:
    source = replace(SourceModel.open(make_model("llama", tmp_path)), config=config)
    found = kv_cache(source, 100)
    assert found.nbytes is None and found.groups == ()
    assert found.unknown is not None and reason in found.unknown


def test_a_config_that_promises_another_cache_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = SourceModel.open(make_model("llama", tmp_path))
    honest = cache_size._from_config
    monkeypatch.setattr(cache_size, "_from_config", lambda *args: honest(*args)[:2] + (cache_size.BlockCache(4, 16),))
    found = kv_cache(source, 100)
    assert found.nbytes is None
    assert found.unknown is not None and "block 2" in found.unknown and "[1, 4, 2, 16]" in found.unknown
