"""Numbers, names and paragraphs as people read them."""

from io import StringIO

import pytest
from rich.console import Console

from bitbudget.report.sizes import divergence, duration, exact_size, parse_size, perplexity, size
from bitbudget.report.terminal import print_json, printable, say


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0.00 KiB"), (1024, "1.00 KiB"), (4_555_264, "4.34 MiB"), (3 << 30, "3.00 GiB"), (5 << 50, "5,120.00 TiB")],
)
def test_sizes(nbytes: int, text: str) -> None:
    assert size(nbytes) == text
    assert exact_size(nbytes) == f"{text} ({nbytes:,} bytes)"


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("5GB", 5 * 10**9),
        ("1.5 gib", 3 << 29),
        ("1000000", 10**6),
        ("7b", 7),
        ("2K", 2000),
        ("0", None),
        ("x", None),
        ("3i", None),
    ],
)
def test_sizes_are_read(text: str, nbytes: int | None) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (125.0, "2 min 05 s"), (12000.0, "3 h 20 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_measured_numbers() -> None:
    assert divergence(0.016023, 0.000437) == "0.016023 ± 0.000437"
    assert divergence(0.5, None) == "0.500000"
    assert [perplexity(value) for value in (1.5, 47.7721, 123456.7, float("inf"))] == [
        "1.5000",
        "47.77",
        "123,456.70",
        "inf",
    ]


def test_a_paragraph_is_wrapped_between_words_and_the_pointer_keeps_its_place() -> None:
    file = StringIO()
    console = Console(file=file, force_terminal=True, width=40, markup=False, highlight=False)
    path = "/a/very/long/path/that/is/copied/by/people/out.bin"
    say(console, f"The file {path} is [bold] damaged in some way.\n    int4:k{'1' * 60}\n{' ' * 10}^")
    lines = file.getvalue().splitlines()
    assert path in lines
    assert lines[-2].startswith("    int4:k111") and len(lines[-2]) > 60
    assert lines[-1] == " " * 10 + "^"
    assert "[bold]" in file.getvalue()


def test_control_characters_are_spelled_out() -> None:
    assert printable("a\x1b[2J\nb\tä✓") == "a\\x1b[2J\nb\tä✓"


def test_json_has_no_infinity(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": float("inf"), "b": [float("nan"), 1.5], "c": {"d": "é"}})
    assert capsys.readouterr().out == '{\n "a": null,\n "b": [\n  null,\n  1.5\n ],\n "c": {\n  "d": "é"\n }\n}\n'
