"""Divergence and perplexity against plain formulas, and in waves."""

from pathlib import Path

import pytest
import torch

from bitbudget.calibration.documents import default_text
from bitbudget.calibration.split import split
from bitbudget.calibration.tokenizer import Tokenizer
from bitbudget.models.source import SourceModel
from bitbudget.models.stream import BlockStream, CheckpointWeights
from bitbudget.pipeline import measure as module
from bitbudget.pipeline.measure import Measurement, measure
from bitbudget.pipeline.progress import Run, Silent
from bitbudget.pipeline.texts import Cut, Sample, sample
from bitbudget.pipeline.verify import measure_folder, open_folder

CUT = Cut(window=40, tokens=400)


@pytest.fixture(scope="module")
def source(original: Path) -> SourceModel:
    return SourceModel.open(original)


@pytest.fixture(scope="module")
def chosen(source: SourceModel) -> Sample:
    text = default_text()
    return sample(text, split(text).acceptance, Tokenizer.open(source.folder), source, CUT)


@pytest.fixture(scope="module")
def measured(finished: Path, source: SourceModel, chosen: Sample) -> Measurement:
    return measure_folder(open_folder(finished), source, chosen, Run("cpu"))


def streamed(source: SourceModel, weights: object, chosen: Sample) -> list[torch.Tensor]:
    stream = BlockStream(source, weights, torch.device("cpu"), torch.float32)
    logits = stream.logits(stream.forward([sequence.ids for sequence in chosen.sequences]))
    return [one[sequence.positions].double() for one, sequence in zip(logits, chosen.sequences, strict=True)]


def test_plain_formulas(finished: Path, source: SourceModel, chosen: Sample, measured: Measurement) -> None:
    folder = open_folder(finished)
    expected = streamed(source, CheckpointWeights(source.checkpoint), chosen)
    found = streamed(folder.source, folder.weights, chosen)
    labels = torch.cat([sequence.labels for sequence in chosen.sequences])
    p, q = torch.cat(expected), torch.cat(found)
    divergences = torch.nn.functional.kl_div(
        q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    loss = torch.nn.functional.cross_entropy(q, labels)
    assert measured.tokens == len(labels) == chosen.tokens
    assert measured.kl == pytest.approx(float(divergences.mean()), rel=1e-9)
    assert measured.perplexity == pytest.approx(float(loss.exp()), rel=1e-9)
    assert measured.top1 == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    words = sum(sequence.words for sequence in chosen.sequences)
    assert measured.word_perplexity == pytest.approx(float(torch.exp(loss * len(labels) / words)), rel=1e-9)


def test_standard_error_is_over_documents(
    finished: Path, source: SourceModel, chosen: Sample, measured: Measurement
) -> None:
    folder = open_folder(finished)
    expected = streamed(source, CheckpointWeights(source.checkpoint), chosen)
    found = streamed(folder.source, folder.weights, chosen)
    sums: dict[int, list[float]] = {}
    for p, q, sequence in zip(expected, found, chosen.sequences, strict=True):
        total = torch.nn.functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="sum")
        entry = sums.setdefault(sequence.document, [0.0, 0.0])
        entry[0] += float(total)
        entry[1] += sequence.scored
    kl, n = torch.tensor(list(sums.values()), dtype=torch.float64).T
    residual = kl - kl.sum() / n.sum() * n
    count = len(kl)
    assert count > 2
    assert measured.kl_se == pytest.approx(
        float((residual.square().sum() * count / (count - 1)).sqrt() / n.sum()), rel=1e-6
    )


def test_the_original_against_itself_has_no_divergence(source: SourceModel, chosen: Sample) -> None:
    streams = [
        BlockStream(source, CheckpointWeights(source.checkpoint), torch.device("cpu"), torch.float32) for _ in range(2)
    ]
    result = measure(streams[0], streams[1], chosen.sequences, (chosen.window, chosen.stride), Silent())
    assert result.kl == 0 and result.top1 == 1 and result.perplexity == result.reference_perplexity


def test_waves_change_nothing(
    finished: Path, source: SourceModel, chosen: Sample, measured: Measurement, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAVE_BYTES", 100 * 64 * 4)  # two or three sequences
    assert measure_folder(open_folder(finished), source, chosen, Run("cpu")) == measured
