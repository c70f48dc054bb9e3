"""Pieces of work in threads: in order, alone with their cores, and leaving everything as it was."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from bitbudget.threads import mapped

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_pieces() -> None:
    assert mapped(lambda piece: piece * piece, range(50), CPU) == [piece * piece for piece in range(50)]
    assert mapped(lambda piece: piece, [], CPU) == []


def test_every_thread_keeps_to_one_core_and_leaves_the_rest_alone() -> None:
    barrier = threading.Barrier(2, timeout=30)

    def work(_: int) -> tuple[int, int]:
        barrier.wait()  # both at once, or an error
        return threading.get_ident(), torch.get_num_threads()

    found = mapped(work, range(2), CPU)
    assert len({thread for thread, _ in found}) == 2
    assert [count for _, count in found] == [1, 1]
    assert torch.get_num_threads() == 2
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == 2


def test_an_accelerator_takes_one_piece_after_the_other() -> None:
    found = mapped(lambda _: threading.get_ident(), range(4), torch.device("meta"))
    assert set(found) == {threading.get_ident()}


@pytest.mark.parametrize("recording", [False, True])
def test_gradients_are_recorded_as_outside(recording: bool) -> None:
    leaf = torch.ones(3, requires_grad=True)
    with torch.set_grad_enabled(recording):
        found = mapped(lambda piece: (leaf * piece).requires_grad, range(4), CPU)
    assert found == [recording] * 4


def test_an_error_is_raised_and_ends_what_has_not_begun() -> None:
    done: list[int] = []

    def work(piece: int) -> None:
        if piece == 0:
            raise ValueError("piece 0")
        done.append(piece)
        threading.Event().wait(0.01)

    with pytest.raises(ValueError, match="piece 0"):
        mapped(work, range(500), CPU)
    assert len(done) < 400
    assert torch.get_num_threads() == 2
