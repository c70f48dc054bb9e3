"""Three parts of a text that never overlap, whatever the order and the copies of its documents."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbudget.calibration.documents import Text
from bitbudget.calibration.split import Split, document_hash, split, whole
from bitbudget.errors import InputError


def text_of(documents: list[str]) -> Text:
    return Text("a", Path("a.jsonl"), "0" * 64, tuple(documents))


def parts_of(result: Split) -> list[tuple[str, ...]]:
    return [result.calibration.documents, result.acceptance.documents, result.evaluation.documents]


several = st.lists(st.text(max_size=4), min_size=3).filter(lambda documents: len(set(documents)) >= 3)


@given(several)
def test_parts_never_overlap_and_lose_nothing(documents: list[str]) -> None:
    parts = parts_of(split(text_of(documents)))
    assert sorted(document for part in parts for document in part) == sorted(documents)
    assert len({document for part in parts for document in set(part)}) == sum(len(set(part)) for part in parts)
    assert all(parts)


@given(several, st.randoms(use_true_random=False))
def test_the_order_of_the_file_changes_nothing(documents: list[str], order: random.Random) -> None:
    shuffled = order.sample(documents, len(documents))
    assert split(text_of(documents)) == split(text_of(shuffled))


@pytest.mark.parametrize(("count", "sizes"), [(3, [1, 1, 1]), (4, [2, 1, 1]), (7, [3, 2, 2]), (100, [50, 25, 25])])
def test_sizes_and_ranks(count: int, sizes: list[int]) -> None:
    documents = [f"document {index}" for index in range(count)]
    parts = parts_of(split(text_of(documents)))
    assert [len(part) for part in parts] == sizes
    assert [document for part in parts for document in part] == sorted(documents, key=document_hash)


def test_hashes_name_the_parts() -> None:
    documents = [f"document {index}" for index in range(12)]
    first, changed = split(text_of(documents)), split(text_of([*documents, "one more"]))
    parts = (first.calibration, first.acceptance, first.evaluation, whole(text_of(documents)))
    assert len({part.sha256 for part in parts}) == 4
    assert whole(text_of(documents)).sha256 != whole(text_of([*documents, "one more"])).sha256
    assert first.calibration != changed.calibration or first.evaluation != changed.evaluation


def test_known_hash() -> None:
    """A plan written today names the same part tomorrow."""
    assert document_hash("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    part = whole(text_of(["abc"]))
    assert part.sha256 == "dfe7a23fefeea519e9bbfdd1a6be94c4b2e4529dd6b7cbea83f9959c2621b13c"


def test_too_few_different_documents_are_counted() -> None:
    with pytest.raises(InputError, match="too short: 5 documents, 2 of them different"):
        split(text_of(["one", "two", "one", "one", "two"]))
