"""p_d on the disk against what it stands for: the first-order change of each sequence's loss, whatever the architecture."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import zoo
from bitbudget.calibration.tokens import TokenSequence
from bitbudget.checkpoint.scratch import read_tensors
from bitbudget.methods import LlmMq
from bitbudget.methods.recipe import Labels
from bitbudget.models.gradients import GradientStream
from bitbudget.models.source import SourceModel
from bitbudget.models.stream import BlockStream, CheckpointWeights
from bitbudget.pipeline import scores
from bitbudget.pipeline.effort import Effort
from bitbudget.pipeline.planning import Planner, Settings
from bitbudget.pipeline.progress import Run
from bitbudget.pipeline.scores import logits_gradient
from bitbudget.pipeline.table import Measured
from bitbudget.rounding import fit
from bitbudget.transforms.fold import FoldedWeights

SEQUENCES = 3
METHOD = LlmMq(
    bits=(2, 4), groups=(16,), outliers=("0", "1%"), tables=("int3:g16",), score="first", labels="text", scaling=False,
    reference="int3:g16",
)  # fmt: skip
EFFORT = Effort("few", first=SEQUENCES, most=SEQUENCES)


def planner_of(folder: Path, cache: Path, method: LlmMq = METHOD) -> Planner:
    return Planner(SourceModel.open(folder), Settings(method.recipe(), EFFORT, cache=cache), Run("cpu"))


def files_of(measured: Measured, planner: Planner) -> dict[str, dict[str, Tensor]]:
    (wave,) = measured.waves
    return {
        offer.layer.name: read_tensors(measured.scoring.path(wave, offer.layer.name)) for offer in planner.offers if offer.stored
    }


def loss(model: PreTrainedModel, sequences: tuple[TokenSequence, ...]) -> list[float]:
    """Summed cross-entropy of every sequence on the text's own labels."""
    found = []
    with torch.no_grad():
        for sequence in sequences:
            logits = model(sequence.ids[None].long(), use_cache=False).logits[0][sequence.positions]
            found.append(float(torch.nn.functional.cross_entropy(logits, sequence.labels.long(), reduction="sum")))
    return found


@pytest.mark.parametrize("name", ["llama", "llama_tied", "gpt2", "gemma2", "opt"])
def test_finite_differences(name: str, tmp_path: Path) -> None:
    """L(W + εΔ) − L(W − εΔ) → 2ε · gᵀΔ for every layer, sequence by sequence; sums over both uses of a tied matrix."""
    folder = zoo.make_model(name, tmp_path / "model", text=True)
    planner = planner_of(folder, tmp_path / "cache")
    measured = planner.measured(SEQUENCES)
    files = files_of(measured, planner)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    assert {offer.layer.kind for offer in planner.offers} >= {"linear"}
    for offer in planner.offers:
        layer = offer.layer
        parameter = model.get_submodule(layer.module).weight
        weight = parameter.detach().float().T if layer.transposed else parameter.detach().float()
        chosen = 0
        fitted = fit(weight.contiguous(), offer.stored[chosen].choice, measured.scoring.calibration.gram(layer))
        delta = fitted.error(slice(0, layer.shape[0])).double()
        step = 1e-4 / float(delta.square().mean().sqrt())
        changes = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * step * (delta.T if layer.transposed else delta)
            changes.append(loss(model, planner.sequences))
            with torch.no_grad():
                parameter -= sign * step * (delta.T if layer.transposed else delta)
        slope = [(up - down) / (2 * step) for up, down in zip(*changes, strict=True)]
        found = files[layer.name]["sums"][chosen].tolist()
        assert found == pytest.approx(slope, rel=0.02, abs=2e-3 * max(map(abs, slope))), layer.name
        # what the estimator makes of them
        tokens = sum(sequence.scored for sequence in planner.sequences)
        score = measured.estimate(offer, "first").score[chosen]
        assert float(score) == pytest.approx(abs(sum(found)) / tokens)


def test_two_runs_give_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = zoo.make_model("llama_tied", tmp_path / "model", text=True)
    sampled = replace(METHOD, labels="sampled", score="fisher", scaling=True)
    found = []
    for run, nbytes in (("one", None), ("two", None), ("parts", 1)):
        if nbytes is not None:
            monkeypatch.setattr("bitbudget.pipeline.scores.FACTOR_BYTES", nbytes)
        planner = planner_of(folder, tmp_path / run, sampled)
        found.append(files_of(planner.measured(SEQUENCES), planner))
    one, two, parts = found
    for layer, tensors in one.items():
        for key, tensor in tensors.items():
            assert torch.equal(tensor, two[layer][key]), (layer, key)
            # Other sizes of matrix products may add in another order.
            near = 1e-4 * float(tensor.abs().max())
            torch.testing.assert_close(parts[layer][key].double(), tensor.double(), rtol=2e-3, atol=near)


def test_rows_and_sums_agree(tmp_path: Path) -> None:
    folder = zoo.make_model("llama", tmp_path / "model", text=True)
    planner = planner_of(folder, tmp_path / "cache")
    measured = planner.measured(SEQUENCES)
    for name, tensors in files_of(measured, planner).items():
        rows = tensors["rows"].double() * tensors["scale"].double()[:, None, None]
        scale = float(rows.abs().sum(-1).max())
        torch.testing.assert_close(rows.sum(-1), tensors["sums"], rtol=0, atol=2e-3 * scale, msg=name)


def gradients(planner: Planner, stream: BlockStream) -> dict[str, Tensor]:
    """GᵀX of every linear for the first sequence."""
    sequence = planner.sequences[0]
    states = stream.start([sequence.ids])
    entered = []
    for block in range(stream.block_count):
        entered.append(states.hidden[0])
        stream.run_block(block, states)
    backward = GradientStream(stream)
    wanted = logits_gradient("text", sequence, 0)
    at, _ = backward.from_logits(states, 0, states.hidden[0], sequence.positions, wanted)
    found = {}
    for block in reversed(range(stream.block_count)):
        layers = [layer for layer in planner.source.layers if layer.block == block]
        with stream.loaded(block):
            at, factors = backward.through_block(block, states, 0, entered[block], at, layers)
        found |= {name: factor.gradients.T @ factor.inputs for name, factor in factors.items()}
    stream.free()
    return found


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_scales_that_are_folded_in_change_no_score(name: str, tmp_path: Path) -> None:
    """W' = diag(r) W diag(c): g' = g / (r c), so g'∘Δ' is g∘Δ for the Δ that Δ' maps back to."""
    folder = zoo.make_model(name, tmp_path / "model", text=True)
    planner = planner_of(folder, tmp_path / "cache", replace(METHOD, scaling=True))
    fold = planner.calibration().fold
    assert fold.factors
    weights = CheckpointWeights(planner.source.checkpoint)
    plain = gradients(planner, planner.stream())
    folded = gradients(planner, BlockStream(planner.source, FoldedWeights(weights, fold), planner.device, planner.dtype))
    changed = 0
    for layer in planner.source.layers:
        if layer.kind != "linear":
            continue
        factors = fold.factors.get(layer.tensor)
        mapped = folded[layer.name]
        if factors is not None:
            changed += 1
            out, into = (factors.columns, factors.rows) if layer.transposed else (factors.rows, factors.columns)
            mapped = mapped * (1 if out is None else out[:, None]) * (1 if into is None else into)
        expected = plain[layer.name]
        torch.testing.assert_close(mapped, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()), msg=layer.name)
    assert changed


def test_labels_are_drawn_from_the_model(tmp_path: Path) -> None:
    """p − e: the mean of many draws is 0, text labels give p − e of the text."""
    folder = zoo.make_model("llama", tmp_path / "model", text=True)
    sequence = planner_of(folder, tmp_path / "cache").sequences[0]
    logits = torch.randn(len(sequence.labels), 50, generator=torch.Generator().manual_seed(0))
    short = replace(sequence, ids=sequence.ids % 50)

    def gradient(labels: Labels, number: int) -> Tensor:
        found = torch.empty_like(logits)
        logits_gradient(labels, short, number)(logits, found)
        return found

    probabilities = torch.softmax(logits, -1)
    expected = probabilities.clone()
    expected[torch.arange(len(short.labels)), short.labels.long()] -= 1
    torch.testing.assert_close(gradient("text", 0), expected)
    draws = [gradient("sampled", number) for number in range(400)]
    mean = torch.stack(draws).mean(0)
    assert float((mean.abs() / (probabilities / 400).sqrt()).mean()) < 1  # 0.8 for normal numbers
    assert torch.equal(draws[3], gradient("sampled", 3))
    assert not torch.equal(draws[3], draws[4])


def test_labels_of_a_large_vocabulary_are_drawn_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = zoo.make_model("llama", tmp_path / "model", text=True)
    sequence = planner_of(folder, tmp_path / "cache").sequences[0]
    logits = torch.randn(len(sequence.labels), int(sequence.ids.max()) + 1, generator=torch.Generator().manual_seed(0))
    whole, pieces = torch.empty_like(logits), torch.empty_like(logits)
    logits_gradient("text", sequence, 0)(logits, whole)
    monkeypatch.setattr(scores, "LOGITS", 7 * logits.shape[1])
    logits_gradient("text", sequence, 0)(logits, pieces)
    assert torch.equal(pieces, whole)
    logits_gradient("sampled", sequence, 0)(logits, pieces)
    away = torch.softmax(logits, -1) - pieces
    torch.testing.assert_close(away.sum(1), torch.ones(len(away)))
    torch.testing.assert_close(away.amax(1), torch.ones(len(away)))
