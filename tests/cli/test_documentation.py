"""docs/commands.md keeps up with the program."""

from pathlib import Path

import pytest
from typer.main import get_command

from bitbudget.cli import app
from bitbudget.report.failures import EXIT_CODES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "commands.md").read_text(encoding="utf-8")
COMMANDS = get_command(app).commands


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_described(command: str) -> None:
    assert f"\n## {command}\n" in PAGE
    options = [[*parameter.opts, *parameter.secondary_opts] for parameter in COMMANDS[command].params]
    named = [names for names in options if names[0].startswith("-")]
    assert named
    assert [names for names in named if not any(name in PAGE for name in names if name.startswith("--"))] == []


@pytest.mark.parametrize("code", EXIT_CODES)
def test_every_exit_code_is_described(code: int) -> None:
    assert f"| {code} | {EXIT_CODES[code]} |" in PAGE
