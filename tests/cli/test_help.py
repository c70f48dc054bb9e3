"""Help: complete, at once, and without loading torch."""

import subprocess
import sys

import pytest

from bitbudget.cli import app
from bitbudget.report.failures import EXIT_CODES

COMMANDS = ("bench", "forecast", "verify", "evaluate", "inspect", "run", "demo", "solve", "diff", "plan", "quantize")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60)


def test_every_command_is_there() -> None:
    assert [command.callback.__name__ for command in app.registered_commands] == list(COMMANDS)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_names_every_exit_code(invoke, command: str) -> None:
    result = invoke(*filter(None, [command, "--help"]))
    assert result.exit_code == 0
    assert all(meaning in result.stdout for meaning in EXIT_CODES.values())
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_json_and_debug(invoke, command: str) -> None:
    help_text = invoke(command, "--help").stdout
    assert "--json" in help_text and "--debug" in help_text
    assert ("--device" in help_text) is (command not in ("bench", "inspect", "solve", "diff"))


@pytest.mark.parametrize("arguments", [["--help"], ["quantize", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom bitbudget.cli import app\n"
        f"try:\n    app({arguments})\nexcept SystemExit:\n    pass\n"
        "print('HEAVY', *sorted({'torch', 'transformers', 'numpy', 'scipy'} & set(sys.modules)))"
    )
    assert run("-c", code).stdout.splitlines()[-1] == "HEAVY"


def test_the_module_is_the_command() -> None:
    result = run("-m", "bitbudget", "--version")
    assert result.returncode == 0
    assert result.stdout.startswith("bitbudget ")


@pytest.mark.parametrize(
    "arguments",
    [["frobnicate"], ["quantize"], ["quantize", "demo", "--frob"], ["evaluate", "x", "--text", "y", "--tokens", "0"]],
)
def test_a_command_line_that_is_not_understood(invoke, arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error" in result.stderr


@pytest.mark.parametrize("size", ["5XB", "", "-1", "0", "GB", "1e9"])
def test_a_shard_size_that_is_none(invoke, size: str) -> None:
    result = invoke("quantize", "demo", "--choice", "int4", "-o", "x", f"--max-shard-size={size}")
    assert result.exit_code == 2
    assert "is no size" in " ".join(result.stderr.split())
