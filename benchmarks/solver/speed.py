"""How long the solver takes, how far it proves its answers, what it leaves unused.

python benchmarks/solver/speed.py [seeds]
"""

import sys
import time
from typing import Any

from instances import KINDS, Question, question
from record import write

from bitbudget.allocation import Solution, frontier, solve

SIZES = ((200, 30, 1), (5000, 40, 1), (500, 40, 2), (200, 30, 2))
SHARES = (0.2, 0.5)


def measured(asked: Question, share: float) -> dict[str, Any]:
    """One solve: seconds of the processor, which other work on the machine hardly changes, gap, what was left."""
    budgets = asked.budgets(share)
    started = time.process_time()
    solution = solve(asked.units, budgets)
    seconds = time.process_time() - started
    return {
        "question": asked.name,
        "budget": f"{share:.0%} of span",
        "seconds": round(seconds, 2),
        "gap": float(f"{solution.gap:.2e}"),
        "proven": solution.optimal,
        "open units": solution.work.open_units,
        "unused": solution.unused["bytes"],
        "cheapest upgrade": cheapest_upgrade(asked, solution) if len(budgets) == 1 else None,
    }


def cheapest_upgrade(asked: Question, solution: Solution) -> int | None:
    """The fewest bytes for which one unit could still lose less."""
    extra = [
        point.cost[0] - solution.points[unit.name].cost[0]
        for unit in asked.units
        for point in unit.points
        if point.score < solution.points[unit.name].score
    ]
    return min(extra, default=None)


def main(seeds: int) -> None:
    rows = []
    for units, points, dimensions in SIZES:
        for kind in KINDS:
            for seed in range(seeds):
                asked = question(kind, units, points, dimensions, seed)
                rows += [measured(asked, share) for share in SHARES]
                print(rows[-1], flush=True)
    asked = question("model", 5000, 40, 1, 0)
    started = time.process_time()
    curve = frontier(asked.units, "bytes", {"bytes": None})
    whole = f"The whole frontier of {asked.name}: {len(curve.costs)} corners in {time.process_time() - started:.2f} s."
    over = [row for row in rows if row["cheapest upgrade"] is not None and row["unused"] >= row["cheapest upgrade"]]
    notes = [
        "Seconds are those of the processor.",
        f"Budgets lie 20 % and 50 % of the way from the least total to the largest. {whole}",
        f"Slowest: {max(row['seconds'] for row in rows)} s. Proven optimal: {sum(row['proven'] for row in rows)} of "
        f"{len(rows)}; largest gap of the rest {max(row['gap'] for row in rows):.1e}; with one budget "
        f"{max(row['gap'] for row in rows if row['cheapest upgrade'] is not None or '1 budgets' in row['question']):.1e}.",
        f"Plans whose unused bytes would pay for an upgrade of one unit: {len(over)}.",
    ]
    columns = ["question", "budget", "seconds", "gap", "proven", "open units", "unused", "cheapest upgrade"]
    write("speed", "Speed and certainty of the solver", columns, rows, notes)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
