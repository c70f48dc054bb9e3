"""The table of `bench`."""

from typing import Any

from rich.console import Console

from bitbudget.report.sizes import size
from bitbudget.report.terminal import new_table, say


def show_bench(console: Console, found: dict[str, Any]) -> None:
    """A row for layers of one shape and choice, the slowest first, and one for all. `found` is what `bench --json` prints."""
    table = new_table("out × in, choice", "layers", "ms", "GB/s", "of memory", "held")
    for row in found["rows"]:
        slow = ", reference" if row["kernels"] == "reference" else ""
        table.add_row(f"{row['shape'][0]}×{row['shape'][1]}, {row['choice']}{slow}", *_numbers(row))
    table.add_row("all", *_numbers(found["total"]))
    console.print(table)
    tokens = "one token" if found["tokens"] == 1 else f"{found['tokens']} tokens"
    threads = "one thread, which reads" if found["threads"] == 1 else f"{found['threads']} threads, which read"
    say(
        console,
        "A row is one layer of its kind; reference: without a fast kernel. "
        f"Median times of products with {tokens} in {found['dtype']} on {threads} "
        f"{found['bandwidth'] / 1e9:.1f} GB/s from memory.",
    )


def _numbers(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(row["layers"]),
        f"{1e3 * row['seconds']:.3f}",
        f"{row['bytes_per_second'] / 1e9:.1f}",
        f"{100 * row['share_of_bandwidth']:.0f} %",
        size(row["nbytes"]),
    )
