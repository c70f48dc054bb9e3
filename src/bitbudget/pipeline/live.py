"""Bytes of the tensors that a computation holds at once, counted while it runs, on any device.

On the meta device nothing is computed and nothing allocated, so a forward pass of a model of any size can be asked what
it would hold. What an operation takes for itself, and gives back before it ends, is told by a function.
"""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Within = Callable[[Any, tuple[Any, ...]], Iterable[int]]  # operation and its arguments -> bytes of what it takes


class Peak:
    """The most that was held: of small tensors at one time, and of large ones at one time, perhaps another.

    Small ones lie in the heap, which keeps what it once took; large ones have pages of their own.
    """

    def __init__(self, large_from: int) -> None:
        self._large_from = large_from
        self.small = self.large = 0

    def note(self, sizes: Iterable[int]) -> None:
        """What is held at the moment."""
        small = large = 0
        for size in sizes:
            small, large = (small + size, large) if size < self._large_from else (small, large + size)
        self.small, self.large = max(self.small, small), max(self.large, large)

    @property
    def total(self) -> int:
        return self.small + self.large


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make, each once and for as long as anything refers to it.

    known: tensors that were there before and do not count. `peak` is the most held, `peak_within` the most together
    with what `within` says of the operation that runs. large_from: bytes from which a tensor counts as large.
    """

    def __init__(self, known: Iterable[Tensor] = (), within: Within | None = None, large_from: int = 0) -> None:
        super().__init__()
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}
        self._within = within or (lambda operation, arguments: ())
        self._large_from = large_from
        self.forget_peaks()

    def forget_peaks(self) -> None:
        """Begin again with what is held now."""
        self.peak, self.peak_within = Peak(self._large_from), Peak(self._large_from)
        self._note(())

    def _note(self, within: Iterable[int]) -> None:
        self._held = {key: entry for key, entry in self._held.items() if not entry[0].expired()}
        sizes = [nbytes for _, nbytes in self._held.values()]
        self.peak.note(sizes)
        self.peak_within.note([*sizes, *within])

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        storages = [leaf.untyped_storage() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        for storage in storages:
            if storage._cdata not in self._known:
                self._held[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._note(self._within(func, args))
        return result
