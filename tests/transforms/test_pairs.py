"""Which channels of every architecture can be scaled, and that wrong pairs are not taken."""

import pytest
import torch

from bitbudget.transforms import pairs
from bitbudget.transforms.pairs import PairFinder, find_scale_groups
from zoo import ARCHITECTURES, HELD_OUT, MIXTURES, make_model

ALL = [*ARCHITECTURES, *HELD_OUT, *MIXTURES]

ATTENTION = {"input_layernorm": ("q_proj", "k_proj", "v_proj"), "v_proj": ("o_proj",)}
LLAMA = ATTENTION | {"post_attention_layernorm": ("gate_proj", "up_proj"), "up_proj": ("down_proj",)}
GEMMA = ATTENTION | {"pre_feedforward_layernorm": ("gate_proj", "up_proj"), "up_proj": ("down_proj",)}
EXPECTED = {
    "phi": {"input_layernorm": ("q_proj", "k_proj", "v_proj", "fc1"), "v_proj": ("dense",)},
    "opt": {
        "self_attn_layer_norm": ("q_proj", "k_proj", "v_proj"),
        "v_proj": ("out_proj",),
        "final_layer_norm": ("fc1",),
        "fc1": ("fc2",),  # through ReLU, which a positive scale passes
    },
    "gpt2": {"ln_1": ("c_attn",), "c_attn": ("c_proj",), "ln_2": ("c_fc",)},
    "phi3": {
        "input_layernorm": ("qkv_proj",),
        "qkv_proj": ("o_proj",),
        "post_attention_layernorm": ("gate_up_proj",),
        "gate_up_proj": ("down_proj",),
    },
    "gemma2": GEMMA,
    "gemma3": GEMMA,
    "gpt_neox": {
        "input_layernorm": ("query_key_value",),
        "query_key_value": ("dense",),
        "post_attention_layernorm": ("dense_h_to_4h",),
    },
    "olmo2": {"v_proj": ("o_proj",), "up_proj": ("down_proj",)},  # its norms come after attention and feed-forward
    "mixtral": ATTENTION,
    "qwen3_moe": ATTENTION,
}
UNSCALED = {
    "phi": {"fc2"},
    "gpt2": {"c_proj"},
    "gpt_neox": {"dense_4h_to_h"},
    "olmo2": {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"},
}


def leaf(name: str) -> str:
    return name.removesuffix(".weight").rpartition(".")[2]


@pytest.mark.parametrize("name", ALL)
def test_every_architecture_has_the_groups_that_its_mathematics_allow(zoo, name, stream_of, sequences):
    stream = stream_of(zoo(name, dtype=torch.bfloat16))
    states, finder = stream.start(sequences), PairFinder(stream)
    for index in range(stream.block_count):
        groups, unscaled = finder.find(states, index)
        found = {leaf(group.producer.weight): tuple(map(leaf, group.consumers)) for group in groups}
        assert found == EXPECTED.get(name, LLAMA)
        assert {leaf(layer) for entry in unscaled for layer in entry.layers} == UNSCALED.get(name, set())
        assert all(entry.reason for entry in unscaled)
        assert {group.block for group in groups} == {index}
        listed = [
            layer for entry in (*groups, *unscaled) for layer in getattr(entry, "consumers", None) or entry.layers
        ]
        assert sorted(listed) == sorted(layer.name for layer in stream.source.layers if layer.block == index)


@pytest.mark.parametrize("name", ALL)
def test_gains_stored_as_one_plus_are_told_apart(zoo, name, stream_of, sequences, groups_of):
    groups = groups_of(stream_of(zoo(name, dtype=torch.bfloat16)), sequences)
    assert {group.producer.one_plus for group in groups if group.producer.kind == "norm"} <= {name.startswith("gemma")}


def test_repeated_heads_and_fused_rows_are_mapped(zoo, stream_of, sequences, groups_of):
    values = groups_of(stream_of(zoo("qwen3", dtype=torch.bfloat16)), sequences)[1]
    assert (values.channels, values.repeats) == (48, 2)
    head = list(range(24))
    assert list(values.columns) == [*head, *head, *(c + 24 for c in head), *(c + 24 for c in head)]
    fused = groups_of(stream_of(zoo("gpt_neox", dtype=torch.bfloat16)), sequences)[1]
    assert fused.producer.rows == tuple(row for head in range(4) for row in range(48 * head + 32, 48 * head + 48))
    assert fused.columns is None and fused.repeats == 1


def test_the_inspected_module_is_the_innermost_around_the_consumers(zoo, stream_of, sequences, groups_of):
    inspected = [group.inspected for group in groups_of(stream_of(zoo("llama")), sequences)[:4]]
    path = "model.layers.0"
    assert inspected == [f"{path}.self_attn", f"{path}.self_attn.o_proj", f"{path}.mlp", f"{path}.mlp.down_proj"]
    assert groups_of(stream_of(zoo("phi")), sequences)[0].inspected == path


def test_a_loaded_block_stays_loaded_and_unchanged(zoo, stream_of, sequences):
    stream = stream_of(zoo("gemma2", dtype=torch.bfloat16))
    states = stream.start(sequences)
    with stream.loaded(0) as block:
        before = {name: parameter.clone() for name, parameter in block.named_parameters()}
        outside = find_scale_groups(stream, states, 0)
        assert all(torch.equal(value, before[name]) for name, value in block.named_parameters())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in block.modules())
    assert find_scale_groups(stream, states, 0) == outside
    assert all(parameter.is_meta for parameter in stream.model.parameters())


def test_blocks_that_are_built_alike_are_searched_once(zoo, stream_of, sequences, monkeypatch):
    searches = []

    class Watched(pairs.Search):
        def found(self):
            searches.append(self)
            return super().found()

    monkeypatch.setattr(pairs, "Search", Watched)
    stream = stream_of(zoo("llama"))
    states, finder = stream.start(sequences), PairFinder(stream)
    first = finder.find(states, 0)
    assert len(searches) == 1 and [group.block for group in finder.find(states, 1)[0]] == [1] * 4
    assert len(searches) == 1
    # What another block's search found is proven by this block's weights, not believed.
    wrong = pairs.Pair("linear", "self_attn.q_proj", ("self_attn.o_proj",), 64)
    (structure,) = finder._known
    finder._known[structure] = pairs.Proposals((wrong,), (), frozenset())
    assert finder.find(states, 0) == first and len(searches) == 2


def test_a_block_that_cannot_run_in_fp64_is_listed(zoo, stream_of, sequences, monkeypatch):
    def refuse(*_):
        raise RuntimeError("not implemented for 'Double'\nmore")

    monkeypatch.setattr(pairs, "Search", refuse)
    stream = stream_of(zoo("llama"))
    groups, unscaled = find_scale_groups(stream, stream.start(sequences), 0)
    assert groups == () and len(unscaled[0].layers) == 7
    assert "fp64" in unscaled[0].reason and "'Double'" in unscaled[0].reason and "more" not in unscaled[0].reason


def test_a_weight_used_twice_is_left_alone(zoo, stream_of, sequences, monkeypatch):
    twice = "model.layers.0.mlp.down_proj.weight"
    all_names = pairs._parameters
    monkeypatch.setattr(pairs, "_parameters", lambda model: [*all_names(model), twice])
    stream = stream_of(zoo("llama"))
    groups, unscaled = find_scale_groups(stream, stream.start(sequences), 0)
    assert [entry.layers for entry in unscaled] == [("model.layers.0.mlp.down_proj",)]
    assert "several places" in unscaled[0].reason
    assert len(groups) == 3


def test_a_router_that_reads_the_norm_forbids_its_scale(tmp_path, monkeypatch, stream_of, sequences):
    from transformers import Qwen2MoeConfig

    import zoo

    config = {"moe_intermediate_size": 40, "shared_expert_intermediate_size": 72, "num_experts": 4}
    mixture = {"qwen2_moe": lambda vocab: Qwen2MoeConfig(vocab_size=vocab, **config, **zoo.EXPERTS)}
    monkeypatch.setattr(zoo, "MIXTURES", {**MIXTURES, **mixture})
    stream = stream_of(make_model("qwen2_moe", tmp_path))
    groups, unscaled = find_scale_groups(stream, stream.start(sequences), 0)
    assert [leaf(group.producer.weight) for group in groups] == ["input_layernorm", "v_proj", "up_proj"]
    assert [tuple(map(leaf, entry.layers)) for entry in unscaled] == [("gate_proj", "up_proj")]
    assert "mlp.gate" in unscaled[0].reason and "no layer" in unscaled[0].reason
