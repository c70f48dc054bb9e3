"""Plans in words: what was solved, how good it is, and what one plan does otherwise than another."""

from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Console

from bitbudget.report.terminal import new_table, printable, say

if TYPE_CHECKING:
    from bitbudget.allocation import Difference, Plan


def show_plan(console: Console, plan: "Plan") -> None:
    """Totals beside their budgets, the loss and its bound, and how often each choice was taken."""
    from bitbudget.allocation.solution import readable_prices  # numpy: not before a plan is there

    table = new_table("cost", "total", "budget", "unused")
    for name, total in plan.costs.items():
        limit = plan.budgets.get(name)
        cells = ("-", "-") if limit is None else (f"{limit:,}", f"{limit - total:,}")
        table.add_row(printable(name), f"{total:,}", *cells)
    console.print(table)
    console.print()
    if plan.loss is not None and plan.gap is not None:
        proof = "proven optimal" if plan.optimal else f"at most {plan.gap:.2%} above the best possible"
        say(console, f"Predicted loss {plan.loss:.6g}, {proof} (lower bound {plan.lower_bound:.6g}).")
    for name, price in readable_prices(plan.shadow_prices, plan.minimized).items():
        say(console, f"Shadow price: {price:.3g} {printable(name)}.")
    for note in plan.notes:
        say(console, f"Note: {note}")
    console.print()
    counts = Counter(plan.layers.values())
    table = new_table("choice", "layers")
    for choice, count in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])):
        table.add_row(printable(choice), f"{count:,}")
    console.print(table)


def show_difference(console: Console, difference: "Difference") -> None:
    """One fact a line."""
    for line in difference.lines():
        say(console, line)
