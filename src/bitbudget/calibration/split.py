"""One text, three parts that never overlap: what a plan learns from, what accepts it, what judges the result.

The order is that of the documents' hashes, so the same documents fall into the same parts wherever they stand in a
file, and a document that occurs twice never stands on both sides.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

from bitbudget.calibration.documents import DOCUMENT_TOKENS, Text
from bitbudget.errors import InputError

LEAST_DOCUMENTS = 3


@dataclass(frozen=True)
class TextPart:
    """Documents in the order of their hashes; sha256: of those hashes (hex digits, joined), which names the part."""

    name: str
    documents: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class Split:
    """The parts of one text: no document of one occurs in another."""

    calibration: TextPart
    acceptance: TextPart
    evaluation: TextPart


def document_hash(document: str) -> str:
    """sha256 of the document's UTF-8 bytes, in hex digits."""
    return sha256(document.encode("utf-8")).hexdigest()


def split(text: Text) -> Split:
    """The first half of the different documents for calibration, a quarter each for acceptance and evaluation.

    Copies of a document stay beside it. Raises InputError for fewer than three different documents.
    """
    ranked = sorted({document_hash(document) for document in text.documents})
    if len(ranked) < LEAST_DOCUMENTS:
        raise InputError(
            f"The text {text.path} is too short: {len(text.documents)} documents, {len(ranked)} of them different, but "
            f"calibration, acceptance and evaluation need at least one each, {LEAST_DOCUMENTS} together. Give a longer "
            f"text: {LEAST_DOCUMENTS} lines of JSON, or plain text of {LEAST_DOCUMENTS * DOCUMENT_TOKENS} tokens with "
            "blank lines between its paragraphs, at the least."
        )
    middle, last = len(ranked) // 2, len(ranked) * 3 // 4
    return Split(
        _part("calibration", text.documents, ranked[:middle]),
        _part("acceptance", text.documents, ranked[middle:last]),
        _part("evaluation", text.documents, ranked[last:]),
    )


def whole(text: Text) -> TextPart:
    """All documents of a text as one part, for a text that no plan has seen."""
    return _part("whole", text.documents, {document_hash(document) for document in text.documents})


def _part(name: str, documents: Iterable[str], hashes: Iterable[str]) -> TextPart:
    wanted = set(hashes)
    chosen = sorted((digest, document) for document in documents if (digest := document_hash(document)) in wanted)
    return TextPart(
        name=name,
        documents=tuple(document for _, document in chosen),
        sha256=sha256("".join(digest for digest, _ in chosen).encode("ascii")).hexdigest(),
    )
