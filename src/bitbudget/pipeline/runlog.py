"""The log beside a checkpoint: when, where, how long. Times never go into the checkpoint: its bytes would change."""

import json
import platform
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bitbudget.pipeline.progress import Progress


def run_log_path(output: Path) -> Path:
    """`<output>.run.jsonl`, beside the folder."""
    whole = output.resolve()
    return whole.with_name(f"{whole.name}.run.jsonl")


class RunLog:
    """Hands every stage on to `progress`, and adds up its seconds."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._started = datetime.now(UTC)
        self._seconds: dict[str, float] = defaultdict(float)
        self._stage: str | None = None
        self._began = 0.0

    def start(self, stage: str, total: int) -> None:
        self._stage, self._began = stage, time.monotonic()
        self._progress.start(stage, total)

    def advance(self, amount: int) -> None:
        self._progress.advance(amount)

    def finish(self) -> None:
        if self._stage is not None:
            self._seconds[self._stage] += time.monotonic() - self._began
            self._stage = None
        self._progress.finish()

    @property
    def worked(self) -> bool:
        """Whether any stage has begun."""
        return bool(self._seconds)

    def entry(self, command: dict[str, Any], outcome: str) -> dict[str, Any]:
        """One line of the log. peak_rss_bytes: of this process, mapped files included."""
        import torch  # its thread count; this module stays light

        return {
            "command": command,
            "outcome": outcome,
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": {stage: round(seconds, 3) for stage, seconds in self._seconds.items()},
            "peak_rss_bytes": _peak_rss(),
            "host": {"name": platform.node(), "system": platform.platform(), "machine": platform.machine()},
            "threads": torch.get_num_threads(),
        }

    def append(self, output: Path, command: dict[str, Any], outcome: str) -> None:
        """Add a line to the log beside `output`. A log that cannot be written is no reason to fail."""
        line = json.dumps(self.entry(command, outcome), ensure_ascii=False) + "\n"
        with suppress(OSError), run_log_path(output).open("a", encoding="utf-8") as file:
            file.write(line)


@contextmanager
def logged(progress: Progress, output: Path, command: dict[str, Any]) -> Iterator[RunLog]:
    """The stages of a run into `output`; its line is written however it ends, unless it was refused before any work."""
    log, outcome = RunLog(progress), "done"
    try:
        yield log
    except BaseException as error:
        outcome = type(error).__name__
        raise
    finally:
        if log.worked:
            log.append(output, command, outcome)


def _peak_rss() -> int:
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
