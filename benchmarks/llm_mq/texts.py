"""Texts beside the checkout (`../shared/text`), and of these the passages that the packaged text does not hold."""

from collections.abc import Sequence
from pathlib import Path

from bitbudget.calibration.documents import default_text, read_text
from bitbudget.calibration.split import document_hash
from bitbudget.calibration.tokenizer import Tokenizer
from bitbudget.calibration.tokens import TokenSequence, sequences, take
from bitbudget.errors import InputError

SHARED = Path(__file__).resolve().parents[3] / "shared"
VALIDATION = SHARED / "text" / "validation.jsonl"
TRAINING = SHARED / "text" / "books-train.txt.xz"


def unused_documents() -> tuple[str, ...]:
    """The different passages of the validation text, in its order, that the packaged text does not hold.

    Nothing is calibrated, scored or accepted on them by default, so tables may be.
    """
    packaged = {document_hash(document) for document in default_text().documents}
    different = dict.fromkeys(read_text(VALIDATION).documents)
    return tuple(document for document in different if document_hash(document) not in packaged)


def windows(documents: Sequence[str], tokenizer: Tokenizer, count: int, length: int) -> tuple[TokenSequence, ...]:
    """`count` windows of exactly `length` tokens, spread over the documents.

    They lie end to end if that gives enough of them, else they overlap as little as possible; no token is scored twice.
    Raises InputError if even windows that overlap by half are too few.
    """
    for stride in range(length, length // 2 - 1, -2):
        whole = [window for window in sequences(documents, tokenizer, length, stride) if len(window.ids) == length]
        if len(whole) >= count:
            return take(whole, count * length)
    raise InputError(
        f"The text is too short: {len(documents)} documents give {len(whole)} windows of {length} tokens, even if they "
        f"overlap by half, and {count} are needed. Give a longer text, or ask for fewer or shorter sequences."
    )
