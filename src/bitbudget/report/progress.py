"""Progress with time left, drawn only for stages that take longer than a person waits without wondering."""

import threading
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from bitbudget.report.sizes import duration

PATIENCE = 2.0  # seconds
SURE_AFTER = 0.5  # seconds after which the rest of a stage is extrapolated
PLAIN_EVERY = 15.0  # seconds between two lines where stderr is no terminal


class _TimeLeft(ProgressColumn):
    """`12 s left`; nothing while it cannot be known."""

    def render(self, task: Task) -> Text:
        seconds = task.time_remaining
        return Text("" if seconds is None or task.finished else f"{duration(float(seconds))} left", style="cyan")


class StageBar:
    """Draws the stages that it is told of (`pipeline.progress.Progress`); used as a context manager.

    On a terminal a bar appears once a stage has run for two seconds or is forecast to, and disappears with the stage.
    Elsewhere a long stage writes a line now and then.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.RLock()  # the timer that shows a silent stage runs in a thread of its own
        self._stage = ""
        self._total = self._done = 0.0
        self._began = self._told = 0.0
        self._timer: threading.Timer | None = None
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> "StageBar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()

    def start(self, stage: str, total: int) -> None:
        """A stage begins; a total of 0 means that its length is not known."""
        self.finish()
        with self._lock:
            self._stage, self._total, self._done = stage, total, 0.0
            self._began = self._told = time.monotonic()
            if self._console.is_terminal:
                self._timer = threading.Timer(PATIENCE, self._show)
                self._timer.daemon = True
                self._timer.start()

    def advance(self, amount: int) -> None:
        """So much more of the stage's total is done."""
        with self._lock:
            self._done += amount
            if self._bar is not None:
                self._bar.update(self._task, completed=self._done)
            elif not self._console.is_terminal:
                self._tell()
            elif self._elapsed > SURE_AFTER and self._elapsed + self._left > PATIENCE:
                self._show()

    def finish(self) -> None:
        """The stage is over, however it ended."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._bar is not None:
                self._bar.stop()
                self._bar = None
            self._stage = ""

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    @property
    def _left(self) -> float:
        return self._elapsed * (self._total - self._done) / self._done if self._done else 0.0

    def _show(self) -> None:
        with self._lock:
            if self._bar is not None or not self._stage:
                return
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(24),
                TextColumn("{task.percentage:>3.0f} %"),
            )
            self._bar = Progress(*columns, _TimeLeft(), console=self._console, transient=True)
            self._task = self._bar.add_task(self._stage, total=self._total or None)
            self._bar.update(self._task, completed=self._done)
            self._bar.start()

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._told < PLAIN_EVERY or not self._total:
            return
        self._told = now
        share = 100 * self._done / self._total
        self._console.print(
            f"{self._stage}: {share:.0f} % after {duration(self._elapsed)}, about {duration(self._left)} left",
            soft_wrap=True,
        )
