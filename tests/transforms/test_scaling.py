"""Scales are folded exactly: what the files store after the fold carries the whole scale, in every dtype."""

import pytest
import torch

from bitbudget.transforms.fold import Fold
from bitbudget.transforms.pairs import ScaleGroup
from bitbudget.transforms.scaling import Scaling, fold_scale

SIXTEEN = [torch.bfloat16, torch.float16]


def by_producer(groups: list[ScaleGroup], end: str) -> ScaleGroup:
    return next(group for group in groups if group.producer.weight.endswith(end))


@pytest.mark.parametrize("spread", [0.5, 20.0])
@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize("name", ["llama_tied", "opt", "gpt2", "gpt_neox", "phi3"])
def test_linear_producers_are_divided_by_powers_of_two_that_their_dtype_holds(
    zoo, name, dtype, spread, stream_of, groups_of, sequences
):
    stream = stream_of(zoo(name, dtype=dtype))
    checkpoint = stream.source.checkpoint
    generator = torch.Generator().manual_seed(1)
    linears = [group for group in groups_of(stream, sequences) if group.producer.kind == "linear"]
    for group in linears:
        scale = torch.exp(spread * torch.randn(group.channels, generator=generator))
        fold = fold_scale(stream.source, group, scale)
        producer = group.producer
        folded = fold.apply(producer.weight, checkpoint.read(producer.weight))
        assert torch.equal(folded.to(dtype).float(), folded) and torch.isfinite(folded.to(dtype)).all()
        factor = Scaling(stream.source, group).exact(scale)
        assert torch.equal(torch.exp2(torch.log2(factor).round()), factor)
        if producer.bias is not None:
            rows = slice(None) if producer.rows is None else list(producer.rows)
            new, old = fold.replaced[producer.bias], checkpoint.read(producer.bias)
            assert new.dtype == dtype
            assert torch.equal(new.float()[rows] * factor, old.float()[rows])


def test_wished_scales_are_met_where_the_dtype_has_room(zoo, stream_of, groups_of, sequences):
    stream = stream_of(zoo("llama", dtype=torch.bfloat16))
    group = by_producer(groups_of(stream, sequences), "up_proj.weight")
    scale = torch.exp(torch.randn(group.channels, generator=torch.Generator().manual_seed(1)))
    factor = Scaling(stream.source, group).exact(scale)
    assert ((torch.log2(factor) - torch.log2(scale)).abs() <= 0.5 + 1e-5).all()
    assert len(factor.unique()) > 3


def test_fp16_channels_are_shifted_together_before_they_are_clamped(zoo, edited, stream_of, groups_of, sequences):
    name = "model.layers.0.mlp.up_proj.weight"

    def tiny(tensors):
        tensors[name][:, 0] = 2.0**-24  # cannot be halved once

    stream = stream_of(edited("llama", tiny, dtype=torch.float16))
    group = by_producer(groups_of(stream, sequences), name)
    wished = torch.exp2(torch.arange(group.channels) % 5.0 - 2)
    factor = Scaling(stream.source, group).exact(wished)
    assert torch.equal(factor, wished / 4)
    assert torch.equal(Scaling(stream.source, group).exact(torch.ones(group.channels)), torch.ones(group.channels))


@pytest.mark.parametrize("dtype", [*SIXTEEN, torch.float32])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_consumers_are_multiplied_by_old_over_new_stored_gain(zoo, name, dtype, stream_of, groups_of, sequences):
    stream = stream_of(zoo(name, dtype=dtype))
    group = groups_of(stream, sequences)[0]
    scale = torch.exp(torch.randn(group.channels, generator=torch.Generator().manual_seed(1)))
    fold = fold_scale(stream.source, group, scale)
    one = float(group.producer.one_plus)
    old, new = stream.source.checkpoint.read(group.producer.weight), fold.replaced[group.producer.weight]
    assert new.dtype == old.dtype == dtype and one == (name == "gemma3")
    factor = fold.factors[f"{group.consumers[0]}.weight"].columns
    assert torch.equal(factor, ((old.double() + one) / (new.double() + one)).float())
    assert (factor / scale - 1).abs().max() < 0.2
    assert {tuple(fold.factors[f"{layer}.weight"].columns.tolist()) for layer in group.consumers} == {
        tuple(factor.tolist())
    }


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_gains_that_cannot_be_divided_stay(edited, name, stream_of, groups_of, sequences):
    gain = "model.layers.0.input_layernorm.weight"
    zero = -1.0 if name == "gemma3" else 0.0

    def odd(tensors):
        tensors[gain][:3] = zero

    stream = stream_of(edited(name, odd, dtype=torch.float16))
    group = groups_of(stream, sequences)[0]
    scale = torch.full((group.channels,), 2.0)
    scale[4] = torch.inf
    scale[5] = 0.0
    scale[6] = 1e-9  # overflows fp16
    fold = fold_scale(stream.source, group, scale)
    old = stream.source.checkpoint.read(gain)
    kept = torch.tensor([0, 1, 2, 4, 5, 6])
    assert torch.equal(fold.replaced[gain][kept], old[kept])
    factor = fold.factors[f"{group.consumers[0]}.weight"].columns
    assert torch.equal(factor[kept], torch.ones(6)) and (factor[7:] > 1.5).all()
    assert torch.isfinite(factor).all()


def test_a_linear_between_two_groups_gets_both_factors(zoo, stream_of, groups_of, random_fold, sequences):
    stream = stream_of(zoo("llama", dtype=torch.bfloat16))
    fold = random_fold(stream.source, groups_of(stream, sequences))
    name = "model.layers.0.mlp.up_proj.weight"
    factors = fold.factors[name]
    assert factors.rows.shape == (150,) and factors.columns.shape == (64,)
    tensor = stream.source.checkpoint.read(name)
    assert torch.equal(fold.apply(name, tensor), tensor.float() * factors.rows[:, None] * factors.columns)
    assert (
        fold.reasons[name] == "multiplied by the scale of post_attention_layernorm; divided by the scale of down_proj"
    )
    assert fold.reasons["model.layers.0.input_layernorm.weight"] == "divided by the scale of q_proj, k_proj, v_proj"


def test_a_scale_of_one_changes_nothing(zoo, stream_of, groups_of, sequences):
    stream = stream_of(zoo("phi", dtype=torch.bfloat16))
    for group in groups_of(stream, sequences):
        assert fold_scale(stream.source, group, torch.ones(group.channels)) == Fold.none()
