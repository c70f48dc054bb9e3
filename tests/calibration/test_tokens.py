"""From documents to windows: which tokens are scored, what begins a window, how a sample is spread."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitbudget.calibration.documents import default_text
from bitbudget.calibration.split import split
from bitbudget.calibration.tokenizer import Tokenizer
from bitbudget.calibration.tokens import TokenSequence, fingerprint, sequences, take, windows
from bitbudget.errors import InputError

PREFIXES = st.sampled_from([(), (1000,), (1000, 1001), (1000, 1001, 1002)])


@given(st.integers(0, 60), st.integers(5, 20), st.integers(1, 20), PREFIXES)
def test_windows_score_every_token_at_most_once(length: int, window: int, stride: int, prefix: tuple[int, ...]) -> None:
    document = list(range(length))
    cuts = windows(document, window, min(stride, window), prefix)
    scored = [token for cut in cuts for token in cut.ids[cut.first + 1 :]]
    assert scored == sorted(set(scored))
    assert not set(scored) & set(prefix)
    for cut in cuts:
        body = cut.ids[len(prefix) :]
        assert cut.ids[: len(prefix)] == prefix
        assert len(cut.ids) <= window
        assert list(body) == document[body[0] : body[0] + len(body)]
        assert 1 <= cut.first <= len(cut.ids) - 3


@given(st.integers(0, 60), st.integers(5, 20), PREFIXES)
def test_windows_without_overlap_cover_the_document(length: int, window: int, prefix: tuple[int, ...]) -> None:
    cuts = windows(range(length), window, prefix=prefix)
    covered = [token for cut in cuts for token in cut.ids[len(prefix) :]]
    assert covered == list(range(len(covered)))
    assert length - len(covered) <= 3
    assert all(len(cut.ids) == window for cut in cuts[:-1])
    assert all(cut.first == max(1, len(prefix) - 1) for cut in cuts)
    assert cuts == windows(range(length), window, window, prefix)


def test_an_overlap_is_scored_once() -> None:
    cuts = windows(range(10), window=6, stride=3)
    assert [cut.ids for cut in cuts] == [(0, 1, 2, 3, 4, 5), (3, 4, 5, 6, 7, 8)]
    assert [cut.ids[cut.first + 1 :] for cut in cuts] == [(2, 3, 4, 5), (6, 7, 8)]
    with_prefix = windows(range(10), window=6, stride=4, prefix=(99,))
    assert [cut.ids[cut.first + 1 :] for cut in with_prefix] == [(1, 2, 3, 4), (5, 6, 7, 8)]


@pytest.mark.parametrize(("window", "stride", "prefix"), [(3, None, ()), (4, 5, ()), (8, 0, ()), (4, None, (1, 2, 3))])
def test_windows_that_cannot_work_are_refused(window: int, stride: int | None, prefix: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=f"Windows of {window} tokens"):
        windows(range(100), window, stride, prefix)


def test_position_zero_is_never_scored(tokenizer: Tokenizer) -> None:
    every = sequences(["one two three four five six seven " * 4], tokenizer, window=8)
    for sequence in every:
        assert sequence.positions == slice(1, len(sequence.ids) - 1)
        assert torch.equal(sequence.labels, sequence.ids[2:])
        assert sequence.scored == len(sequence.labels) == len(sequence.ids) - 2
        assert sequence.ids.dtype == torch.int64


def test_the_tokenizers_own_rule_begins_every_window(tokenizer: Tokenizer, bos_tokenizer: Tokenizer) -> None:
    document = "one two three four five six seven " * 4
    assert (tokenizer.prefix, bos_tokenizer.prefix) == ((), (0,))
    whole = tokenizer.encode(document)
    plain, begun = (sequences([document], each, window=8) for each in (tokenizer, bos_tokenizer))
    assert [sequence.ids.tolist() for sequence in plain[:2]] == [whole[:8], whole[8:16]]
    assert [sequence.ids.tolist() for sequence in begun[:2]] == [[0, *whole[:7]], [0, *whole[7:14]]]


def test_a_chat_template_that_writes_bos_does_not_double_it(bos_tokenizer: Tokenizer) -> None:
    chat = bos_tokenizer.render([{"role": "user", "content": "Hello there, how do you do today?"}])
    (sequence,) = sequences([chat], bos_tokenizer, window=64)
    assert sequence.ids.tolist().count(0) == 1
    assert sequence.ids.tolist() == bos_tokenizer.encoder(chat, add_special_tokens=False)["input_ids"]


def test_words_follow_the_scored_tokens(tokenizer: Tokenizer) -> None:
    documents = ["alpha beta gamma " * 20, "one two " * 15]
    for window, stride in ((10, None), (16, 4), (1000, None)):
        every = sequences(documents, tokenizer, window, stride)
        for index, document in enumerate(documents):
            own = [sequence for sequence in every if sequence.document == index]
            share = sum(sequence.scored for sequence in own) / len(tokenizer.encode(document))
            assert sum(sequence.words for sequence in own) == pytest.approx(len(document.split()) * share)


def test_windows_never_cross_documents(tokenizer: Tokenizer) -> None:
    documents = ["alpha beta gamma delta", "", "one two three four five six"]
    every = sequences(documents, tokenizer, window=1000)
    assert [sequence.document for sequence in every] == [0, 2]
    assert [sequence.ids.tolist() for sequence in every] == [tokenizer.encode(documents[index]) for index in (0, 2)]


def test_too_short_texts_are_refused_with_numbers(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="2 documents with 2 tokens together"):
        sequences(["a", "b"], tokenizer, window=64)
    every = sequences(["one two three four five six"], tokenizer, window=64)
    with pytest.raises(InputError, match=f"1 windows hold {len(every[0].ids)} tokens, and 1000 are needed"):
        take(every, tokens=1000)
    assert take(every, tokens=1000, at_least=1)[0] is every[0]
    with pytest.raises(InputError, match="sample of 3 tokens"):
        take(every, tokens=3)


def test_a_foreign_tokenizer_is_refused(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("The quick brown fox")
    sequences(["The quick brown fox"], tokenizer, window=64, vocabulary=max(ids) + 1)
    with pytest.raises(InputError, match=f"token id {max(ids)}.* vocabulary ends at {max(ids) - 1}"):
        sequences(["The quick brown fox"], tokenizer, window=64, vocabulary=max(ids))


def windows_of(lengths: list[list[int]]) -> list[TokenSequence]:
    return [
        TokenSequence(torch.arange(length), 1, document, float(length - 2), f"{document}.{index}")
        for document, own in enumerate(lengths)
        for index, length in enumerate(own)
    ]


@given(st.lists(st.lists(st.integers(4, 12), min_size=1, max_size=4), min_size=1, max_size=6), st.integers(4, 100))
def test_a_sample_is_spread_over_the_documents(lengths: list[list[int]], tokens: int) -> None:
    every = windows_of(lengths)
    available = sum(map(sum, lengths))
    sample = take(every, tokens, at_least=1)
    total = sum(len(sequence.ids) for sequence in sample)
    assert min(tokens, available) - 3 <= total <= tokens
    counts = [sum(sequence.document == document for sequence in sample) for document in range(len(lengths))]
    fullest = max(counts)
    assert all(count >= min(fullest - 1, len(own)) for count, own in zip(counts, lengths, strict=True))
    for sequence in sample:
        assert sequence.words == pytest.approx(sequence.scored)


def test_a_sample_goes_round_the_documents() -> None:
    sample = take(windows_of([[8, 8, 8], [8], [8, 8]]), tokens=44)
    assert [sequence.document for sequence in sample] == [0, 1, 2, 0, 2, 0]
    assert [len(sequence.ids) for sequence in sample] == [8, 8, 8, 8, 8, 4]


def test_fingerprints_know_tokens_and_what_is_scored(tokenizer: Tokenizer) -> None:
    documents = ["one two three four five six seven eight nine ten"]
    every = sequences(documents, tokenizer, window=8)
    assert fingerprint(every) == fingerprint(sequences(documents, tokenizer, window=8))
    assert fingerprint(every) != fingerprint(every[:-1])
    assert fingerprint(every) != fingerprint(sequences(documents, tokenizer, window=8, stride=4))
    shifted = sequences(documents, tokenizer, window=8, stride=4)[1]
    assert shifted.sha256 != windows_of([[8]])[0].sha256


def test_the_packaged_text_suffices(tokenizer: Tokenizer) -> None:
    """Enough tokens in each part for the defaults of every command, and the same ones for ever."""
    parts = split(default_text())
    counts = []
    for part in (parts.calibration, parts.acceptance, parts.evaluation):
        every = sequences(part.documents, tokenizer, window=512, vocabulary=4096)
        counts.append(sum(len(sequence.ids) for sequence in every))
    assert counts[0] > 65_536
    assert min(counts[1:]) > 32_768


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"No tokenizer could be loaded from {tmp_path}"):
        Tokenizer.open(tmp_path)


def test_a_damaged_tokenizer_is_named(tmp_path: Path, demo_folder: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_bytes((demo_folder / "tokenizer_config.json").read_bytes())
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="No tokenizer could be loaded"):
        Tokenizer.open(tmp_path)
