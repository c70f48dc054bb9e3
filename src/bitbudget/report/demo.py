"""The demo's table."""

from typing import Any

from rich.console import Console

from bitbudget.report.decided import show_guard
from bitbudget.report.sizes import divergence, perplexity
from bitbudget.report.terminal import new_table, say


def show_demo(console: Console, demo: dict[str, Any], kept_in: str | None) -> None:
    """The original and every choice. demo: `pipeline.demo.Demo.to_dict()`; kept_in: the folder, if it stays."""
    table = new_table("choice", "bits", "bytes", "KL ± SE, nats", "perplexity", "top-1")
    for row in (demo["original"], *demo["rows"]):
        table.add_row(*_cells(row, row is demo["original"]))
    console.print(table)
    text = demo["text"]
    console.print()
    say(
        console,
        f"Measured on {text['tokens']:,} tokens of {text['documents']} documents of the packaged books, windows of "
        f"{text['window']}. bits: stored bits a weight, embedding (16-bit) included. KL: divergence from the original, "
        "nats a token. top-1: positions where both find the same token most likely.",
    )
    if demo.get("guard"):
        say(
            console,
            "The last row is a plan: every layer has its own width within the budget. The guard measured it against its rivals:",
        )
        console.print()
        show_guard(console, demo["guard"])
        console.print()
    say(console, "Every file has exactly the bytes that were forecast, and every checkpoint passed its verification.")
    if kept_in:
        say(console, f"The checkpoints are in {kept_in}.")


def _cells(row: dict[str, Any], original: bool) -> tuple[str, ...]:
    loss = "0" if original else divergence(row["kl"], row["kl_se"])
    return (
        row["choice"],
        f"{row['stored_bits']:.2f}",
        f"{row['weights_bytes']:,}",
        loss,
        perplexity(row["perplexity"]),
        f"{100 * row['top1']:.1f} %",
    )
