"""What a long stage tells about itself while it runs. The command line draws it; a library caller may ignore it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from bitbudget.heap import return_freed_memory


@runtime_checkable
class Progress(Protocol):
    """Receives the stages of a run, one after the other; `total` and `amount` are in the same unit of the stage's choice."""

    def start(self, stage: str, total: int) -> None: ...

    def advance(self, amount: int) -> None: ...

    def finish(self) -> None: ...


class Silent:
    """Tells nobody."""

    def start(self, stage: str, total: int) -> None:
        pass

    def advance(self, amount: int) -> None:
        pass

    def finish(self) -> None:
        pass


@dataclass(frozen=True)
class Run:
    """How a run is done, not what it makes: the device, who hears of its progress, and whether a model's own code may run."""

    device: str = "auto"
    progress: Progress = field(default_factory=Silent)
    trust_remote_code: bool = False


@contextmanager
def stage(progress: Progress, name: str, total: int) -> Iterator[Progress]:
    """One stage, finished however it ends; what it freed goes back to the system before the next one begins."""
    progress.start(name, total)
    try:
        yield progress
    finally:
        progress.finish()
        return_freed_memory()
