"""Which text a stage runs on: the packaged one or the user's, its three parts, and the sequences taken from a part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitbudget.calibration.documents import Text, default_text, read_text
from bitbudget.calibration.split import Split, TextPart, split, whole
from bitbudget.calibration.tokenizer import Tokenizer
from bitbudget.calibration.tokens import TokenSequence, fingerprint, sequences, take
from bitbudget.models.context import longest_context
from bitbudget.models.source import SourceModel

DEFAULT_CONTEXT = 2048  # where a config names no longest context


@dataclass(frozen=True)
class Cut:
    """How a part becomes sequences: windows of at most `window` tokens (and the model's context), each `stride` after the last
    (None: end to end), at most `tokens` tokens of them (None: all), spread over the documents."""

    window: int
    stride: int | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Sample:
    """Sequences of one part of a text, with what identifies them."""

    text: Text
    part: TextPart
    sequences: tuple[TokenSequence, ...]
    window: int
    stride: int

    @property
    def tokens(self) -> int:
        return sum(sequence.scored for sequence in self.sequences)

    def to_dict(self) -> dict[str, Any]:
        return {
            "part": self.part.name,
            "part_sha256": self.part.sha256,
            "sequences_sha256": fingerprint(self.sequences),
        }


def open_text(path: Path | str | None, tokenizer: Tokenizer) -> Text:
    """The user's file, or the packaged text."""
    return default_text() if path is None else read_text(path, tokenizer)


def text_entry(text: Text, parts: Split) -> dict[str, Any]:
    """What the plan says of a text: `evaluate` recognises it by its hash."""
    named = (parts.calibration, parts.acceptance, parts.evaluation)
    return {"name": text.name, "sha256": text.sha256, "parts": {part.name: part.sha256 for part in named}}


def sample(text: Text, part: TextPart, tokenizer: Tokenizer, source: SourceModel, cut: Cut) -> Sample:
    """The sequences of a part.

    Raises:
        InputError: the text is too short, or its tokens are not in the model's vocabulary.
    """
    window = min(cut.window, longest_context(source.config) or DEFAULT_CONTEXT)
    vocabulary = source.model.get_input_embeddings().num_embeddings
    every: Sequence[TokenSequence] = sequences(part.documents, tokenizer, window, cut.stride, vocabulary)
    chosen = every if cut.tokens is None else take(every, cut.tokens, at_least=1)
    return Sample(text, part, tuple(chosen), window, cut.stride or window)


def evaluation_part(text: Text, plan_text: Mapping[str, Any] | None) -> TextPart:
    """The whole file, unless the plan was made with it: then only the part that the plan never saw."""
    if plan_text and plan_text.get("sha256") == text.sha256:
        return split(text).evaluation
    return whole(text)
