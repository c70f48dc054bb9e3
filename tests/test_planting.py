"""The heavy-tailed twin is the demo model to its readers, and a harder one to whoever rounds it."""

from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import planting
from bitbudget.calibration.documents import default_text
from bitbudget.calibration.tokenizer import Tokenizer
from bitbudget.calibration.tokens import TokenSequence, sequences
from bitbudget.models.source import SourceModel
from bitbudget.rounding.nearest import nearest
from bitbudget.storage import Choice

BLOCKS = 6


@pytest.fixture(scope="module")
def twin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planting.plant(tmp_path_factory.mktemp("planted") / "twin")


@pytest.fixture(scope="module")
def windows(demo_folder: Path) -> tuple[TokenSequence, ...]:
    return sequences(default_text().documents[::20], Tokenizer.open(demo_folder), 256)


@pytest.fixture(scope="module")
def expected(demo_folder: Path, windows: tuple[TokenSequence, ...]) -> Tensor:
    return log_probabilities(model_of(demo_folder), windows)


def model_of(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def log_probabilities(model: PreTrainedModel, windows: tuple[TokenSequence, ...]) -> Tensor:
    logits = [model(window.ids[None], use_cache=False).logits[0, window.positions] for window in windows]
    return torch.cat(logits).double().log_softmax(-1)


def divergence(expected: Tensor, found: Tensor) -> float:
    return float((expected.exp() * (expected - found)).sum(-1).mean())


@torch.no_grad()
def rounded(folder: Path, choice: str) -> PreTrainedModel:
    """The model with every matrix of its blocks stored by the choice."""
    model = model_of(folder)
    for weight in model.get_decoder().layers.parameters():
        if weight.dim() == 2:
            weight.copy_(nearest(weight.detach(), Choice.parse(choice)).dequantize())
    return model


def test_its_predictions_are_the_demo_models(
    expected: Tensor, twin_folder: Path, windows: tuple[TokenSequence, ...]
) -> None:
    assert 0 < divergence(expected, log_probabilities(model_of(twin_folder), windows)) < 2e-5  # bf16 rounds it


def test_stored_in_fp32_its_logits_are_the_demo_models(
    expected: Tensor, tmp_path: Path, windows: tuple[TokenSequence, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planting, "STORED", torch.float32)
    found = log_probabilities(model_of(planting.plant(tmp_path / "wide")), windows)
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_its_weights_have_heavy_tails(demo_folder: Path, twin_folder: Path) -> None:
    tails = [
        planting.kurtosis(load_file(folder / "model.safetensors"), BLOCKS) for folder in (demo_folder, twin_folder)
    ]
    assert tails[0] < 5
    assert tails[1] == pytest.approx(30, abs=1)


def test_it_is_always_the_same_file(twin_folder: Path) -> None:
    assert sha256((twin_folder / "model.safetensors").read_bytes()).hexdigest() == planting.SHA256


def test_its_layers_are_read_as_the_demo_models(demo_folder: Path, twin_folder: Path) -> None:
    layers = [SourceModel.open(folder).layers for folder in (demo_folder, twin_folder)]
    assert [(layer.name, layer.kind) for layer in layers[1]] == [(layer.name, layer.kind) for layer in layers[0]]
    assert all(layer.shape[1] % 128 == 0 for layer in layers[1])


def test_rounding_costs_it_clearly_more(
    expected: Tensor, demo_folder: Path, twin_folder: Path, windows: tuple[TokenSequence, ...]
) -> None:
    lost = [
        divergence(expected, log_probabilities(rounded(folder, "int3:g128"), windows))
        for folder in (demo_folder, twin_folder)
    ]
    assert lost[1] > 1.8 * lost[0]
