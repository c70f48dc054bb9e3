"""Memory in large pages: it is held as long as anything looks at it, and given back then."""

import gc
import mmap
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitbudget.kernels import supported_isas, tensors
from bitbudget.kernels.tensors import LARGE_PAGE, RUN_BYTES, SHARED_BYTES, LargePages, empty_weight

pytestmark = pytest.mark.skipif(
    not (supported_isas() and hasattr(mmap, "MADV_HUGEPAGE")), reason="needs the CPU kernels and Linux's large pages"
)


def test_weights_lie_behind_one_another_in_large_pages() -> None:
    pages = LargePages()
    taken = [pages.take(count) for count in (LARGE_PAGE + 1, 100, 3 * LARGE_PAGE)]
    assert [len(each) for each in taken] == [LARGE_PAGE + 1, 100, 3 * LARGE_PAGE]
    assert taken[0].data_ptr() % LARGE_PAGE == 0
    for before, after in zip(taken, taken[1:], strict=False):
        end = before.data_ptr() + len(before)
        assert end <= after.data_ptr() < end + mmap.PAGESIZE and after.data_ptr() % mmap.PAGESIZE == 0
    for number, each in enumerate(taken):
        each.fill_(number)
    assert [each.unique().tolist() for each in taken] == [[0], [1], [2]]
    assert pages.take(RUN_BYTES + 1).data_ptr() % LARGE_PAGE == 0  # does not fit behind them


def test_a_view_keeps_its_weight_and_no_other() -> None:
    pages = LargePages()
    first, second, third = (pages.take(4 * LARGE_PAGE).fill_(number) for number in (1, 2, 3))
    view = torch.from_numpy(second.numpy()[5:10])  # of the memory, not of the tensor
    held = resident()
    del first, second, third
    gc.collect()
    assert view.tolist() == [2] * 5
    assert held - resident() > 7 * LARGE_PAGE
    del pages, view
    gc.collect()
    assert held - resident() > 11 * LARGE_PAGE


def test_without_room_for_large_pages_any_memory_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> mmap.mmap:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(tensors, "_weights", LargePages())
    monkeypatch.setattr(mmap, "mmap", refused)
    assert len(empty_weight(LARGE_PAGE).fill_(1)) == LARGE_PAGE


def test_small_weights_take_no_page() -> None:
    small: Tensor = empty_weight(SHARED_BYTES - 1)
    assert len(small) == SHARED_BYTES - 1 and small.dtype == torch.uint8


def resident() -> int:
    """Bytes of this process that are no file's."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
