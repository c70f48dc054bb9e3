"""What was measured, in words: after quantize, verify, evaluate and in inspect."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console

from bitbudget.report.sizes import divergence, perplexity
from bitbudget.report.terminal import new_table, printable, say


def show_verification(console: Console, verification: dict[str, Any] | None) -> None:
    """Passed or failed, the problems, and the measurement. `verification` is as in bitbudget.json."""
    if not verification:
        say(console, "Verification: not run. `bitbudget verify` on this folder does it.")
        return
    checks = len(verification["checks"])
    if verification["passed"]:
        say(console, f"Verification: passed, {checks} checks ({', '.join(verification['checks'])}).")
    else:
        say(console, f"Verification: FAILED ({checks} checks).", style="bold red")
        for problem in verification["problems"]:
            say(console, f"  - {problem}")
    if "measurement" in verification:
        console.print()
        show_measurement(console, verification["measurement"], f"{verification['text']['part']} part of the text")


def show_measurement(console: Console, measurement: dict[str, Any], where: str) -> None:
    """Perplexity, and where there was an original, what was lost against it. where: the text, in a few words."""
    compared = "kl" in measurement
    table = new_table("", *(["stored", "original"] if compared else ["stored"]))
    for row in _rows(measurement, compared):
        table.add_row(*row)
    console.print(table)
    window, stride = measurement["window"], measurement["stride"]
    how = f"windows of {window} tokens" + (f", stride {stride}" if stride != window else "")
    scored = f"{measurement['tokens']:,} tokens of {measurement['documents']:,} documents"
    say(console, f"Measured on {scored}: {printable(where)}, {how}.")


def _rows(measurement: dict[str, Any], compared: bool) -> Iterator[tuple[str, ...]]:
    if compared:
        yield "KL divergence, nats a token", divergence(measurement["kl"], measurement.get("kl_se")), ""
        yield "same most likely token", f"{100 * measurement['top1']:.2f} %", ""
    for title, name in (("perplexity a token", "perplexity"), ("perplexity a word", "word_perplexity")):
        original = (perplexity(measurement[f"reference_{name}"]),) if compared else ()
        yield title, perplexity(measurement[name]), *original
