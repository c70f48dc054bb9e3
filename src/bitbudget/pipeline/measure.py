"""What a stored model loses against its original, and its perplexity: both streamed block by block, side by side at the end.

KL divergence is KL(original ‖ stored) in nats per token, summed over the vocabulary in fp64. Position 0 of a window never counts
(`calibration.tokens`). Standard errors are over documents: windows of one document are not independent.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bitbudget.calibration.tokens import TokenSequence
from bitbudget.models.stream import BlockStream, States
from bitbudget.pipeline.progress import Progress, stage

CHUNK_BYTES = 8 * 2**20  # of fp64 log-probabilities at a time; about six such arrays are alive at once
WAVE_BYTES = 256 * 2**20  # of hidden states of one model at a time
Logits = Float[Tensor, "tokens vocabulary"]


@dataclass(frozen=True)
class Measurement:
    """`kl`, `top1` (share of positions where both name the same most likely token) and `reference_…` need an original.

    perplexity: per token; word_perplexity: per white-space word of the same text. They are different numbers; papers
    use one or the other.
    """

    tokens: int
    documents: int
    window: int
    stride: int
    perplexity: float
    word_perplexity: float
    kl: float | None = None
    kl_se: float | None = None
    top1: float | None = None
    reference_perplexity: float | None = None
    reference_word_perplexity: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass
class Sums:
    """Sums over the scored positions of one document."""

    tokens: int = 0
    words: float = 0.0
    loss: float = 0.0
    reference_loss: float = 0.0
    kl: float = 0.0
    agreeing: int = 0


def measure(
    model: BlockStream,
    reference: BlockStream | None,
    sequences: Sequence[TokenSequence],
    windows: tuple[int, int],
    progress: Progress,
) -> Measurement:
    """Run `model`, and `reference` if given, over the sequences; `windows`: their window and stride, for the record."""
    documents: dict[int, Sums] = defaultdict(Sums)
    waves = list(waves_of(sequences, model))
    for number, wave in enumerate(waves, 1):
        part = f" ({number} of {len(waves)})" if len(waves) > 1 else ""
        _run_wave(model, reference, wave, documents, (part, progress))
    return summary(list(documents.values()), windows, reference is not None)


def waves_of(sequences: Sequence[TokenSequence], model: BlockStream) -> Iterator[list[TokenSequence]]:
    """As many sequences at a time as keep their hidden states within the limit; a text may be larger than memory."""
    width = model.source.model.get_input_embeddings().embedding_dim * model.dtype.itemsize
    wave: list[TokenSequence] = []
    held = 0
    for sequence in sequences:
        if wave and held + len(sequence.ids) * width > WAVE_BYTES:
            yield wave
            wave, held = [], 0
        wave.append(sequence)
        held += len(sequence.ids) * width
    yield wave


def _run_wave(
    model: BlockStream,
    reference: BlockStream | None,
    wave: list[TokenSequence],
    documents: dict[int, Sums],
    told: tuple[str, Progress],
) -> None:
    part, progress = told
    ids = [sequence.ids for sequence in wave]
    original: Iterator[Logits | None] = iter([None] * len(ids))
    if reference is not None:
        original = reference.logits(_forward(reference, ids, f"original model, block by block{part}", progress))
    stored = model.logits(_forward(model, ids, f"stored model, block by block{part}", progress))
    with stage(progress, f"{'compare' if reference else 'score'}{part}", len(ids)):
        for sequence, logits, expected in zip(wave, stored, original, strict=True):
            add_window(documents[sequence.document], sequence, logits, expected)
            del logits, expected  # before the next ones are made
            progress.advance(1)


def _forward(stream: BlockStream, ids: list[Tensor], name: str, progress: Progress) -> States:
    with stage(progress, name, stream.block_count):
        return stream.forward(ids, progress=lambda done, total: progress.advance(1))


def add_window(sums: Sums, sequence: TokenSequence, logits: Logits, expected: Logits | None) -> None:
    """Add one window, a few positions at a time."""
    labels = sequence.labels.to(logits.device)
    logits = logits[sequence.positions]
    expected = None if expected is None else expected[sequence.positions]
    step = max(1, CHUNK_BYTES // (8 * logits.shape[1]))
    for start in range(0, len(labels), step):
        part = slice(start, start + step)
        log_q = torch.log_softmax(logits[part].double(), -1)
        sums.loss -= float(log_q.gather(1, labels[part, None]).sum())
        if expected is None:
            continue
        log_p = torch.log_softmax(expected[part].double(), -1)
        sums.reference_loss -= float(log_p.gather(1, labels[part, None]).sum())
        sums.kl += float((log_p.exp() * (log_p - log_q)).sum())
        sums.agreeing += int((log_p.argmax(-1) == log_q.argmax(-1)).sum())
    sums.tokens += len(labels)
    sums.words += sequence.words


def summary(documents: list[Sums], windows: tuple[int, int], compared: bool) -> Measurement:
    tokens = sum(sums.tokens for sums in documents)
    words = sum(sums.words for sums in documents)
    loss = sum(sums.loss for sums in documents)
    own = Measurement(tokens, len(documents), *windows, _exp(loss / tokens), _exp(loss / words))
    if not compared:
        return own
    reference_loss = sum(sums.reference_loss for sums in documents)
    return replace(
        own,
        kl=sum(sums.kl for sums in documents) / tokens,
        kl_se=ratio_error([sums.kl for sums in documents], [sums.tokens for sums in documents]),
        top1=sum(sums.agreeing for sums in documents) / tokens,
        reference_perplexity=_exp(reference_loss / tokens),
        reference_word_perplexity=_exp(reference_loss / words),
    )


def ratio_error(values: list[float], weights: list[int]) -> float | None:
    """Standard error of Σ values / Σ weights over documents (linearised); None for a single document."""
    count, total = len(values), sum(weights)
    if count < 2:
        return None
    ratio = sum(values) / total
    squares = sum((value - ratio * weight) ** 2 for value, weight in zip(values, weights, strict=True))
    return math.sqrt(count / (count - 1) * squares) / total


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
