"""Progress: on a terminal a bar for what takes long, elsewhere a line now and then, nothing for what is quick."""

import time
from io import StringIO

import pytest
from rich.console import Console

from bitbudget.pipeline.progress import Progress, stage
from bitbudget.pipeline.runlog import RunLog
from bitbudget.report import progress as module
from bitbudget.report.progress import StageBar


def terminal() -> tuple[Console, StringIO]:
    file = StringIO()
    return Console(file=file, force_terminal=True, width=80, markup=False), file


def test_a_quick_stage_shows_nothing() -> None:
    console, file = terminal()
    with StageBar(console) as bar, stage(bar, "quick", 3):
        bar.advance(3)
    assert file.getvalue() == ""


def test_a_stage_that_will_take_long_shows_its_bar_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SURE_AFTER", 0.01)
    console, file = terminal()
    with StageBar(console) as bar, stage(bar, "quantize [bold]", 1000):
        time.sleep(0.02)
        bar.advance(1)
        bar.advance(1)
    assert "quantize [bold]" in file.getvalue()
    assert "left" in file.getvalue()


def test_a_stage_that_tells_nothing_shows_its_bar_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.02)
    console, file = terminal()
    with StageBar(console) as bar, stage(bar, "load", 0):
        time.sleep(0.2)
    assert "load" in file.getvalue()


def test_without_a_terminal_long_stages_write_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    file = StringIO()
    bar = StageBar(Console(file=file, force_terminal=False, width=80))
    with stage(bar, "quick", 2):
        bar.advance(1)
    monkeypatch.setattr(module, "PLAIN_EVERY", 0.0)
    with stage(bar, "quantize", 4):
        time.sleep(0.01)
        bar.advance(1)
    assert file.getvalue() == "quantize: 25 % after 0 s, about 0 s left\n"


def test_the_bar_and_the_log_are_progress() -> None:
    bar = StageBar(terminal()[0])
    assert isinstance(bar, Progress) and isinstance(RunLog(bar), Progress)


def test_the_log_adds_up_stages_of_the_same_name() -> None:
    log = RunLog(StageBar(terminal()[0]))
    assert not log.worked
    for _ in range(2):
        with stage(log, "quantize", 1):
            time.sleep(0.01)
    assert log.entry({}, "done")["seconds"]["quantize"] >= 0.02
