"""The solver against the allocators of other tools, on the same tables and budgets.

python benchmarks/solver/compare.py [seeds]
"""

import sys
from statistics import median
from typing import Any

from instances import KINDS, question
from peers import PEERS
from record import write

from bitbudget.allocation import Point, Unit, solve

SIZES = ((40, 12), (200, 30))
SHARES = (0.1, 0.3, 0.6)
SLOW = {"annealing": 40}  # peers that are tried up to this many units


def main(seeds: int) -> None:
    ratios: dict[tuple[str, str], list[float]] = {}
    worse, solved = [], 0
    for units, points in SIZES:
        for kind in KINDS:
            for seed in range(seeds):
                asked = question(kind, units, points, 1, seed)
                for share in SHARES:
                    solved += 1
                    worse += against(asked.units, asked.budgets(share), ratios, kind)
        print(units, points, {key: round(median(values), 4) for key, values in ratios.items()}, flush=True)
    rows = [row(peer, kind, ratios.get((peer, kind), [])) for peer in PEERS for kind in KINDS]
    notes = [
        f"{solved} tables and budgets of 40 x 12 and 200 x 30 (annealing: 40 x 12 only). Median, least, largest: loss of the "
        "peer over the solver's. `found` counts the budgets for which the peer's rule gave a plan at all.",
        "Peers are given the points without dominated ones, the solver all of them.",
        f"Plans of a peer that lose less than the solver's: {len(worse)}.",
    ]
    write("compare", "The solver against other allocators", list(rows[0]), rows, notes)


def against(
    units: list[Unit], budgets: dict[str, int], ratios: dict[tuple[str, str], list[float]], kind: str
) -> list[str]:
    """Adds every peer's loss over the solver's; returns the peers that did better, within what floating point adds."""
    best = solve(units, budgets)
    offered = [useful(unit) for unit in units]
    better = []
    for name, peer in PEERS.items():
        if len(units) > SLOW.get(name, len(units)):
            continue
        plan = peer(offered, budgets["bytes"])
        if plan is None:
            continue
        assert sum(point.cost[0] for point in plan) <= budgets["bytes"], f"{name} exceeds its budget"
        loss = sum(point.score for point in plan)
        ratios.setdefault((name, kind), []).append(loss / best.loss)
        if loss < best.loss * (1 - 1e-12):
            better.append(name)
    return better


def useful(unit: Unit) -> Unit:
    """The unit without dominated points, which rules that step from point to point would stumble over."""
    kept: list[Point] = []
    for point in sorted(unit.points, key=lambda point: (point.cost[0], point.score)):
        if not kept or point.score < kept[-1].score:
            kept.append(point)
    return Unit(unit.name, tuple(kept))


def row(peer: str, kind: str, values: list[float]) -> dict[str, Any]:
    """One line of the table."""
    return {
        "allocator": peer,
        "tables": kind,
        "found": len(values),
        "median": f"{median(values):.5g}" if values else "",
        "least": f"{min(values):.5g}" if values else "",
        "largest": f"{max(values):.5g}" if values else "",
        "as good as the solver": sum(value <= 1 + 1e-9 for value in values),
    }


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
