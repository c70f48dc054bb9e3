"""From a file to documents: JSON lines with `text` or chat `messages`, or plain text."""

import codecs
import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from bitbudget.calibration.tokenizer import Tokenizer
from bitbudget.data import DEFAULT_TEXT_NAME, default_text_file
from bitbudget.errors import InputError

SEPARATOR = "<|endoftext|>"
DOCUMENT_TOKENS = 512  # least length of a document made of paragraphs
_JSON_LINES = {".jsonl", ".ndjson"}


@dataclass(frozen=True)
class Text:
    """A text file as documents, in the order of the file.

    name: what plans and model cards call it. sha256: of the file's bytes. documents: each holds at least one visible
    character. blank: how many entries of the file held none and were left out.
    """

    name: str
    path: Path
    sha256: str
    documents: tuple[str, ...]
    blank: int = 0


def default_text() -> Text:
    """The packaged text."""
    return read_text(default_text_file(), name=DEFAULT_TEXT_NAME)


def read_text(path: Path | str, tokenizer: Tokenizer | None = None, name: str | None = None) -> Text:
    """Reads a file of JSON lines (known by its ending or its first line) or of plain text.

    A JSON line is a document: its `text`, or its `messages` rendered by the tokenizer's chat template. Plain text is
    cut at `<|endoftext|>`, or else into runs of paragraphs of at least 512 tokens. The tokenizer is needed for chats
    and for runs. Raises InputError, naming file and line, for what cannot be read.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"The text {path} cannot be read: {error.strerror}. Give a readable file of plain text or JSON lines."
        ) from error
    body = content.removeprefix(codecs.BOM_UTF8)
    entries = _json_documents(body, path, tokenizer) if _is_json_lines(body, path) else _plain(body, path, tokenizer)
    documents = tuple(entry for entry in entries if entry.strip())
    if not documents:
        raise InputError(
            f"The text {path} ({len(content)} bytes) holds no document with a visible character. Give another text."
        )
    return Text(name or path.name, path, sha256(content).hexdigest(), documents, len(entries) - len(documents))


def _is_json_lines(body: bytes, path: Path) -> bool:
    if path.suffix.lower() in _JSON_LINES:
        return True
    first = next((line for line in body.split(b"\n") if line.strip()), b"")
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and ("text" in value or "messages" in value)


def _json_documents(body: bytes, path: Path, tokenizer: Tokenizer | None) -> list[str]:
    # Split at \n alone: a JSON string may hold other characters that end a line elsewhere (U+2028).
    lines = enumerate(body.split(b"\n"), start=1)
    return [_json_document(line, f"Line {number} of {path}", tokenizer) for number, line in lines if line.strip()]


def _json_document(line: bytes, place: str, tokenizer: Tokenizer | None) -> str:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(
            f"{place} is not UTF-8: byte {error.start + 1} of the line cannot be decoded. Convert the file to UTF-8."
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not JSON: {error}. Every line must be a JSON object with `text`.") from error
    document = value.get("text") if isinstance(value, dict) else None
    if not isinstance(document, str):
        document = _chat(value, place, tokenizer)
    try:
        document.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{place} holds half of a surrogate pair, which is no character, at place {error.start + 1} of its text. "
            "Write the text anew as UTF-8."
        ) from error
    return document


def _chat(value: Any, place: str, tokenizer: Tokenizer | None) -> str:
    messages = value.get("messages") if isinstance(value, dict) else None
    if not (isinstance(messages, list) and messages and all(isinstance(message, dict) for message in messages)):
        raise InputError(
            f"{place} has neither `text` (a string) nor `messages` (a list of objects that is not empty). "
            'Write a document as {"text": "..."}, a chat as {"messages": [{"role": "user", "content": "..."}]}.'
        )
    if tokenizer is None:
        raise InputError(f"{place} holds `messages`, which only a chat template turns into text. Name the model too.")
    try:
        return tokenizer.render(messages)
    except InputError as error:
        raise InputError(f"{place} cannot be used. {error}") from error


def _plain(body: bytes, path: Path, tokenizer: Tokenizer | None) -> Sequence[str]:
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"Line {line} of {path} is not UTF-8: byte {error.start + 1} of the text cannot be decoded. "
            "Convert the file to UTF-8, or give a file of text."
        ) from error
    if SEPARATOR in text:
        return [piece.strip("\r\n") for piece in text.split(SEPARATOR)]
    if tokenizer is None:
        raise InputError(
            f"The plain text {path} has no {SEPARATOR} between documents, so it is cut by counting tokens. "
            "Name the model too, or separate the documents."
        )
    pieces = paragraphs(text)
    return runs(pieces, tokenizer.lengths(pieces), DOCUMENT_TOKENS)


def paragraphs(text: str) -> list[str]:
    """Cuts a text before every line that follows blank lines; the pieces joined are the text again.

    A line of nothing but spaces counts as blank (WikiText writes ` ` there).
    """
    pieces: list[list[str]] = [[]]
    after_gap = False
    for line in text.splitlines(keepends=True):
        blank = not line.strip()
        if after_gap and not blank and pieces[-1]:
            pieces.append([])
        pieces[-1].append(line)
        after_gap = blank
    return ["".join(piece) for piece in pieces]


def runs(pieces: Sequence[str], lengths: Sequence[int], least: int) -> tuple[str, ...]:
    """Joins neighbouring pieces into documents of at least `least` tokens, counted piece by piece.

    What is left over at the end belongs to the last document; a whole text shorter than `least` is one document.
    """
    documents: list[list[str]] = []
    current: list[str] = []
    tokens = 0
    for piece, length in zip(pieces, lengths, strict=True):
        current.append(piece)
        tokens += length
        if tokens >= least:
            documents.append(current)
            current, tokens = [], 0
    if current:
        documents = [*documents[:-1], [*documents[-1], *current]] if documents else [current]
    return tuple("".join(document) for document in documents)
