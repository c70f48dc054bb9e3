"""One command from its first word to its exit code: where it writes, what it loads, how it tells of an error."""

import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import typer

from bitbudget.pipeline.progress import Progress, stage
from bitbudget.report.failures import explain, left_behind
from bitbudget.report.progress import StageBar
from bitbudget.report.terminal import messages, print_json, printable, results, say

UNCHANGED = "Nothing was changed."


class Session:
    """The channels of a command. as_json: stdout gets one JSON document instead of text."""

    def __init__(self, as_json: bool, debug: bool, interrupted: Callable[[], str] | None = None) -> None:
        self.as_json = as_json
        self.debug = debug
        self.results = results()
        self.messages = messages()
        self.progress = StageBar(self.messages)
        self._interrupted = interrupted or (lambda: UNCHANGED)

    def load(self, kernels: bool = False) -> None:
        """Import torch and transformers, which takes seconds, and keep their own messages off the terminal.

        kernels: a model is going to run, so say if the package has no compiled kernels.
        """
        # GNU OpenMP's threads otherwise spin while they wait, which makes everything many times slower as soon as
        # another program wants one of the cores. It reads this once, when torch is loaded.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        if not self.debug:
            warnings.simplefilter("ignore")
        with self.stage("load torch and transformers"):
            import transformers

            transformers.logging.set_verbosity_error()
            transformers.logging.disable_progress_bar()
            from bitbudget.kernels.extension import why_missing

            if kernels and (reason := why_missing()):
                self.note(reason)

    def stage(self, name: str) -> AbstractContextManager[Progress]:
        """A stage of unknown length."""
        return stage(self.progress, name, 0)

    def stream(self, text: str) -> None:
        """A piece of text that grows; with JSON it is shown whole at the end."""
        if not self.as_json:
            # The model's words are text for people: what would steer the terminal is spelled out.
            self.results.file.write(printable(text))
            self.results.file.flush()

    def note(self, text: str) -> None:
        """A remark to stderr."""
        say(self.messages, text, style="dim")

    def show(self, document: dict[str, Any], text: Callable[[], None]) -> None:
        """The result: as JSON, or by the function that prints it as text."""
        if self.as_json:
            print_json(document)
        else:
            text()

    def failed(self, error: BaseException) -> int:
        """Tell of an error; returns the exit code."""
        failure = explain(error, self._interrupted() if isinstance(error, KeyboardInterrupt) else "")
        if self.debug:
            self.messages.print("".join(traceback.format_exception(error)), soft_wrap=True)
        self.messages.print("Error" if failure.exit_code != 130 else "Interrupted", style="bold red")
        say(self.messages, failure.message)
        if self.as_json:
            print_json(failure.to_dict())
        return failure.exit_code


@contextmanager
def session(as_json: bool, debug: bool, output: Path | None = None) -> Iterator[Session]:
    """A command's session: an error becomes a paragraph and an exit code. output: where a stopped one left its work."""
    running = Session(as_json, debug, (lambda: left_behind(output)) if output else None)
    try:
        with running.progress:
            yield running
    except typer.Exit:
        raise
    except (Exception, KeyboardInterrupt) as error:
        raise typer.Exit(running.failed(error)) from None
