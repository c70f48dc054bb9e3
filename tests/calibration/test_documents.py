"""From a file to documents: every form of text, and every way in which a file can be wrong."""

import json
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbudget.calibration.documents import default_text, paragraphs, read_text, runs
from bitbudget.errors import InputError


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def test_json_lines_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"text": "one"}\n\n{"text": "two\u2028three", "id": 3}\n{"text": " "}\n')
    text = read_text(path)
    assert text.documents == ("one", "two\u2028three")
    assert (text.name, text.path, text.blank) == ("a.jsonl", path, 1)
    assert text.sha256 == sha256(path.read_bytes()).hexdigest()


def test_json_lines_are_known_by_their_content(tmp_path: Path) -> None:
    assert read_text(written(tmp_path, "a.txt", '\n{"text": "one"}\n')).documents == ("one",)
    assert read_text(written(tmp_path, "b.txt", '{"note": 1}<|endoftext|>x')).documents == ('{"note": 1}', "x")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert read_text(written(tmp_path, "a.txt", "\ufeff" + '{"text": "one"}')).documents == ("one",)
    assert read_text(written(tmp_path, "b.txt", "\ufeffone<|endoftext|>two")).documents == ("one", "two")


def test_plain_text_is_cut_at_separators(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", "one\n\nstill one\n<|endoftext|>\ntwo<|endoftext|>\n")
    text = read_text(path)
    assert text.documents == ("one\n\nstill one", "two")
    assert text.blank == 1


def test_plain_text_becomes_runs_of_paragraphs(tmp_path: Path, tokenizer) -> None:
    content = "".join(f" \n = Title {index} = \n \n{'word and ' * 60}\n" for index in range(20))
    documents = read_text(written(tmp_path, "a.txt", content), tokenizer).documents
    assert len(documents) > 2
    assert "".join(documents) == content
    assert all(length >= 512 for length in tokenizer.lengths(documents))
    assert all(length < 1024 for length in tokenizer.lengths(documents[:-1]))


def test_a_short_plain_text_is_one_document(tmp_path: Path, tokenizer) -> None:
    assert read_text(written(tmp_path, "a.txt", "one\n\ntwo\n"), tokenizer).documents == ("one\n\ntwo\n",)


@given(st.text(alphabet="ab \n\r\t\u2028"))
def test_paragraphs_joined_are_the_text(text: str) -> None:
    pieces = paragraphs(text)
    assert "".join(pieces) == text
    assert all(piece.strip() for piece in pieces[1:])


@given(st.lists(st.integers(0, 40)), st.integers(1, 60))
def test_runs_keep_every_piece_and_reach_their_length(lengths: list[int], least: int) -> None:
    pieces = [f"{index}:{length};" for index, length in enumerate(lengths)]
    documents = runs(pieces, lengths, least)
    assert "".join(documents) == "".join(pieces)
    counted = [sum(int(piece.split(":")[1]) for piece in document.split(";") if piece) for document in documents]
    assert all(count >= least for count in counted) or len(documents) == 1


def test_chats_are_rendered_by_the_template(tmp_path: Path, bos_tokenizer) -> None:
    chat = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]}
    text = read_text(written(tmp_path, "a.jsonl", json.dumps(chat)), bos_tokenizer)
    assert text.documents == ("<|endoftext|>[user] Hello\n[assistant] Good day\n",)


def test_the_default_text_is_the_packaged_one() -> None:
    text = default_text()
    assert text.name == "books (packaged)"
    assert len(text.documents) == len(set(text.documents)) == 170
    assert text.blank == 0


CHAT = b'{"messages": [{"role": "user", "content": "Hello"}]}'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "one"}\n{"title": "two"}\n', r"Line 2 of .*a\.jsonl has neither `text`"),
        ("a.jsonl", b'{"text": 3}\n', r"Line 1 of .* has neither `text`"),
        ("a.jsonl", b'{"messages": []}\n', r"Line 1 of .* has neither `text`"),
        ("a.jsonl", b'["one"]\n', r"Line 1 of .* has neither `text`"),
        ("a.jsonl", b'\n{"text": "one"\n', r"Line 2 of .* is not JSON"),
        ("a.jsonl", b"[" * 100_000, r"Line 1 of .* is not JSON"),
        ("a.jsonl", b'{"text": "one"}\n{"text": "\xff"}', r"Line 2 of .* is not UTF-8: byte 11"),
        ("a.jsonl", b'{"text": "\\ud800"}', r"Line 1 of .* surrogate"),
        ("a.jsonl", CHAT, r"Line 1 of .* holds `messages`.*Name the model"),
        ("a.txt", b"one\ntwo \xff\n", r"Line 2 of .*a\.txt is not UTF-8: byte 9"),
        ("a.txt", b"one\n\ntwo", r"a\.txt has no <\|endoftext\|>.*Name the model"),
        ("a.txt", b"", "holds no document|has no"),
        ("a.jsonl", b"", r"\(0 bytes\) holds no document"),
        ("a.jsonl", b'{"text": " "}', "holds no document"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_text(written(tmp_path, name, content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere.txt cannot be read: No such file"):
        read_text(tmp_path / "nowhere.txt")


def test_an_empty_plain_text_is_refused(tmp_path: Path, tokenizer) -> None:
    with pytest.raises(InputError, match=r"\(2 bytes\) holds no document"):
        read_text(written(tmp_path, "a.txt", "\n\n"), tokenizer)


def test_chats_that_cannot_be_rendered_are_named(tmp_path: Path, tokenizer, bos_tokenizer) -> None:
    path = written(tmp_path, "a.jsonl", CHAT.replace(b"user", b"judge"))
    with pytest.raises(InputError, match=r"Line 1 of .*a\.jsonl cannot be used.* has no chat template"):
        read_text(path, tokenizer)
    with pytest.raises(InputError, match=r"Line 1 of .*a\.jsonl cannot be used.* no role judge"):
        read_text(path, bos_tokenizer)
