"""From documents to the windows of token ids that a model is run on, and which of their positions count.

**Position 0 never counts.** What a model predicts at the first position of a window is left out of every score, KL
divergence, loss and perplexity: that position sees one token only, is where attention sinks and massive activations
sit, and would weigh more the shorter the window is. `TokenSequence.first` says where scoring begins; whoever computes
a score applies it.

**Words.** A document of `w` words (pieces between white space) and `n` tokens gives each window `w · s / n` words,
where `s` is the number of tokens that the window scores. Each scored token thus carries its document's words per
token, and exp(Σ loss / Σ words) is the perplexity per word, whatever the windows left unscored.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import zip_longest

import torch
from jaxtyping import Int
from torch import Tensor

from bitbudget.calibration.tokenizer import Tokenizer
from bitbudget.errors import InputError

LEAST_SCORED = 2  # a window that scores fewer tokens is dropped


@dataclass(frozen=True, eq=False)
class TokenSequence:
    """One window of one document, as the model sees it.

    ids: int64, the tokenizer's prefix included. first: the first position whose prediction counts; positions first …
    tokens-2 predict ids[first+1:]. document: its index in the documents given. words: covered by the scored tokens, a
    share of the document's words. sha256: of ids and `first` as little-endian int64.
    """

    ids: Int[Tensor, "tokens"]
    first: int
    document: int
    words: float
    sha256: str

    @property
    def scored(self) -> int:
        """The number of tokens whose prediction counts."""
        return len(self.ids) - 1 - self.first

    @property
    def positions(self) -> slice:
        """The rows of the model's logits that count."""
        return slice(self.first, len(self.ids) - 1)

    @property
    def labels(self) -> Int[Tensor, "scored"]:
        """The tokens that the rows of `positions` predict."""
        return self.ids[self.first + 1 :]


@dataclass(frozen=True)
class Window:
    """A cut of a document: its ids with the prefix, and the first position whose prediction counts."""

    ids: tuple[int, ...]
    first: int


def windows(
    document_ids: Sequence[int], window: int, stride: int | None = None, prefix: Sequence[int] = ()
) -> tuple[Window, ...]:
    """Cuts the ids of one document into windows of at most `window` ids, each beginning with the prefix.

    A window holds `window - len(prefix)` ids of the document and the next one begins `stride` ids later (by default,
    and at most, where this one ends). With a shorter stride the overlap gives context and is not scored again. A
    window that scores fewer than two tokens is dropped. Raises InputError for a window or stride that cannot work.
    """
    least = max(2, len(prefix)) + LEAST_SCORED
    if window < least or (stride is not None and not 1 <= stride <= window):
        raise InputError(
            f"Windows of {window} tokens with a stride of {stride or window} cannot be cut: a window needs at least "
            f"{least} tokens ({len(prefix)} of them the tokenizer's own), and a stride lies between 1 and the window."
        )
    length = window - len(prefix)
    step = min(stride or length, length)
    result = []
    scored_to = 0
    for start in range(0, len(document_ids), step):
        body = document_ids[start : start + length]
        # The label at index i is predicted at position i - 1; index 1 is predicted at position 0, which never counts.
        first = max(2, len(prefix) + scored_to - start) - 1
        if len(prefix) + len(body) - 1 - first >= LEAST_SCORED:
            result.append(Window((*prefix, *body), first))
        scored_to = start + len(body)
        if scored_to == len(document_ids):
            break
    return tuple(result)


def sequences(
    documents: Sequence[str],
    tokenizer: Tokenizer,
    window: int,
    stride: int | None = None,
    vocabulary: int | None = None,
) -> tuple[TokenSequence, ...]:
    """All windows of all documents, in their order; no window crosses from one document into the next.

    window, stride: in tokens, see `windows`. vocabulary: rows of the model's embedding; an id beyond them raises
    InputError, as does a text without a single window to score.
    """
    result: list[TokenSequence] = []
    total = 0
    for index, document in enumerate(documents):
        ids = tokenizer.encode(document)
        total += len(ids)
        _check_vocabulary((*tokenizer.prefix, *ids), vocabulary, tokenizer)
        words_per_token = len(document.split()) / max(len(ids), 1)
        result += [
            _sequence(torch.tensor(cut.ids), cut.first, index, words_per_token)
            for cut in windows(ids, window, stride, tokenizer.prefix)
        ]
    if not result:
        raise InputError(
            f"The text is too short: {len(documents)} documents with {total} tokens together, none of them with the "
            f"{LEAST_SCORED} tokens to score that a window needs after its first position. Give a longer text."
        )
    return tuple(result)


def take(every: Sequence[TokenSequence], tokens: int, at_least: int | None = None) -> tuple[TokenSequence, ...]:
    """At most `tokens` tokens, spread over the documents: the first window of each, then the second of each, and so on.

    The last window is cut to what is left. at_least: how many tokens must be there (all of `tokens` by default); a text
    with fewer raises InputError.
    """
    available = sum(len(sequence.ids) for sequence in every)
    needed = tokens if at_least is None else at_least
    if available < needed:
        raise InputError(
            f"The text is too short: its {len(every)} windows hold {available} tokens, and {needed} are needed. "
            "Give a longer text, or ask for fewer tokens."
        )
    chosen = []
    for sequence in _round_robin(every):
        cut = _shorten(sequence, tokens)
        if cut.scored < LEAST_SCORED:
            break
        chosen.append(cut)
        tokens -= len(cut.ids)
    if not chosen:
        raise InputError(f"A sample of {tokens} tokens is too short to score {LEAST_SCORED} of them. Ask for more.")
    return tuple(chosen)


def fingerprint(sample: Sequence[TokenSequence]) -> str:
    """sha256 over the hashes of the sequences, in their order: equal for equal tokens, scored at the same places."""
    return sha256("".join(sequence.sha256 for sequence in sample).encode("ascii")).hexdigest()


def _round_robin(every: Sequence[TokenSequence]) -> list[TokenSequence]:
    by_document: dict[int, list[TokenSequence]] = {}
    for sequence in every:
        by_document.setdefault(sequence.document, []).append(sequence)
    return [sequence for round_ in zip_longest(*by_document.values()) for sequence in round_ if sequence is not None]


def _shorten(sequence: TokenSequence, tokens: int) -> TokenSequence:
    if len(sequence.ids) <= tokens:
        return sequence
    return _sequence(sequence.ids[:tokens], sequence.first, sequence.document, sequence.words / sequence.scored)


def _sequence(ids: Int[Tensor, "tokens"], first: int, document: int, words_per_token: float) -> TokenSequence:
    scored = len(ids) - 1 - first
    packed = struct.pack(f"<{len(ids) + 1}q", *ids.tolist(), first)
    return TokenSequence(ids, first, document, words_per_token * scored, sha256(packed).hexdigest())


def _check_vocabulary(ids: Sequence[int], vocabulary: int | None, tokenizer: Tokenizer) -> None:
    largest = max(ids, default=0)
    if vocabulary is not None and largest >= vocabulary:
        raise InputError(
            f"The tokenizer in {tokenizer.folder} gives token id {largest}, but the model's vocabulary ends at "
            f"{vocabulary - 1}: they do not belong together. Put the model's own tokenizer into its folder."
        )
