"""How commands end when something happens: Ctrl-C, no memory, mistakes of our own."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bitbudget.report.failures import explain, left_behind
from bitbudget.report.session import Session

COMMAND = [
    sys.executable,
    "-m",
    "bitbudget",
    "quantize",
    "demo",
    "--choice",
    "int3:g128+outliers:1%",
    "--max-shard-size",
    "200KB",
]


# The same program, resting after every shard, so that the signal comes before the end on any machine, and listening to Ctrl-C also
# where the tests themselves were told to ignore it (as what a shell sends to the background is).
RESTING = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from bitbudget.checkpoint.journal import Journal
record = Journal.record
Journal.record = lambda self, *note: (record(self, *note), time.sleep(0.3))[0]
from bitbudget.cli import main
main()
"""


def wait_for_lines(path: Path, count: int) -> None:
    end = time.monotonic() + 180  # a busy machine takes its time to load torch
    while not path.is_file() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < end, f"{path} did not get {count} lines"
        time.sleep(0.002)


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    command = [*COMMAND, "-o", str(output), "--no-verify"]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    slow = [sys.executable, "-c", RESTING, *command[3:]]
    process = subprocess.Popen(slow, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_lines(output / "journal.jsonl", 4)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert "give the same command again" in stderr and "Traceback" not in stderr
    assert not (output / "config.json").exists()
    assert not list(output.glob(".*.partial"))
    kept = {path: path.stat().st_mtime_ns for path in output.glob("*.safetensors")}
    assert kept

    again = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (output / "config.json").is_file() and not (output / "journal.jsonl").exists()
    outcomes = [json.loads(line)["outcome"] for line in (tmp_path / "out.run.jsonl").read_text().splitlines()]
    assert outcomes == ["KeyboardInterrupt", "done"]


def test_what_a_stopped_run_leaves_behind(stored: Path, tmp_path: Path) -> None:
    assert "Nothing was written" in left_behind(tmp_path / "out")
    assert "bitbudget verify" in left_behind(stored)


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "memory of this machine is used up"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "of this machine"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "--device cpu"),
        (KeyError("layer"), "--debug"),
    ],
)
def test_errors_that_are_nobodys_input(invoke, monkeypatch, tmp_path: Path, error: Exception, words: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("bitbudget.pipeline.api.quantize", fail)
    arguments = ["quantize", "demo", "--choice", "int4", "-o", tmp_path / "out"]
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert words in result.stderr and "Traceback" not in result.stderr
    assert type(error).__name__ in invoke(*arguments, "--debug").stderr
    assert "Traceback" in invoke(*arguments, "--debug").stderr


def test_an_error_is_one_json_document_where_asked(invoke, tmp_path: Path) -> None:
    result = invoke("inspect", tmp_path / "out", "--json")
    assert result.exit_code == 3
    error = json.loads(result.stdout)["error"]
    assert error["kind"] == "InputError" and error["exit_code"] == 3
    assert error["message"] in result.stderr


def test_a_keyboard_interrupt_in_any_command(invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: Session) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "load", stop)
    result = invoke("demo")
    assert result.exit_code == 130
    assert "Nothing was changed" in result.stderr


def test_control_characters_of_a_message_do_not_reach_the_terminal(invoke, tmp_path: Path) -> None:
    result = invoke("inspect", tmp_path / "a\x1b[31mred")
    assert "\x1b" not in result.stderr
    assert "a\\x1b[31mred" in result.stderr


def test_explain_of_a_full_disk() -> None:
    failure = explain(OSError(28, "No space left on device"), "")
    assert failure.exit_code == 6
    assert "disk is full" in failure.message
