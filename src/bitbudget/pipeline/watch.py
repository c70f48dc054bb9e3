"""How much memory a piece of work takes, measured by the process itself while it runs."""

import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import torch

from bitbudget.pipeline.peaks import memory_now

INTERVAL_SECONDS = 0.01
STATUS, MAPS = Path("/proc/self/status"), Path("/proc/self/smaps")


class MemoryWatch:
    """Samples, from entering to leaving, what this process holds by itself, every 10 ms in a thread.

    before: what it held when entered: interpreter, libraries, and what was there. peak: the most beyond that, together
    with `mapped`, the pages of `files` that are in memory at the end: a checkpoint is read in place. On a CUDA device
    peak is what torch reserved there. exact: false where the system tells only the most that a process ever held.
    """

    def __init__(self, device: torch.device, files: Iterable[Path] = ()) -> None:
        self._device = device
        self._files = {str(file.resolve()) for file in files}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="bitbudget-memory", daemon=True)
        self.exact = device.type == "cuda" or STATUS.is_file()
        self.before = self.peak = self.mapped = 0

    def __enter__(self) -> "MemoryWatch":
        self.before = memory_now()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._device.type == "cuda":
            self.peak = torch.cuda.max_memory_reserved(self._device)
        else:
            self.mapped = mapped_bytes(self._files)
            self.peak = max(self.peak, memory_now() - self.before) + self.mapped

    def _sample(self) -> None:
        while not self._ended.wait(INTERVAL_SECONDS):
            self.peak = max(self.peak, memory_now() - self.before)


def mapped_bytes(files: set[str]) -> int:
    """Bytes of files that are mapped into this process and now in memory; pages that it changed count elsewhere."""
    if not MAPS.is_file():
        return 0
    mapped, found = 0, False
    for line in MAPS.read_text("utf-8", errors="replace").splitlines():
        words = line.split(maxsplit=5)
        if not words[0].endswith(":"):  # the head of a mapping; its last word is the file
            found = len(words) == 6 and words[5] in files
        elif found and words[0] in ("Shared_Clean:", "Private_Clean:"):
            mapped += 1024 * int(words[1])
    return mapped
