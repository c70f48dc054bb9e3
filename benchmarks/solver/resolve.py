"""Another budget from a saved score table, in fresh processes: seconds of loading, of solving, and of the command.

python benchmarks/solver/resolve.py
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from instances import question
from record import write

from bitbudget.allocation import ScoreTable

STEPS = """
import json, sys, time
from pathlib import Path
from bitbudget.allocation import ScoreTable, plan_from_table
started = time.process_time()
table = ScoreTable.load(Path(sys.argv[1]))
loaded = time.process_time()
plan = plan_from_table(table, json.loads(sys.argv[2]))
solved = time.process_time()
plan.save(Path(sys.argv[3]))
print(json.dumps({"load": loaded - started, "solve": solved - loaded, "optimal": plan.optimal, "gap": plan.gap}))
"""


def processor_of(command: list[str]) -> tuple[str, float, float]:
    """Runs a command to its end: standard output, its processor seconds, its seconds."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return output, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, seconds


def measured(path: Path, budgets: dict[str, int], plan: Path) -> dict[str, Any]:
    """Loading and solving apart, in one fresh process; the command, in another."""
    told = json.loads(processor_of([sys.executable, "-c", STEPS, str(path), json.dumps(budgets), str(plan)])[0])
    asked = [argument for name, limit in budgets.items() for argument in ("--budget", f"{name}={limit}")]
    _, processor, seconds = processor_of(
        [sys.executable, "-m", "bitbudget", "solve", str(path), *asked, "-o", str(plan)]
    )
    return {
        "load processor s": round(told["load"], 2),
        "solve processor s": round(told["solve"], 2),
        "command processor s": round(processor, 2),
        "command s": round(seconds, 2),
        "proven": told["optimal"],
        "gap": float(f"{told['gap']:.1e}"),
    }


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for units, points, dimensions in ((224, 40, 1), (500, 40, 1), (500, 40, 2), (5000, 40, 1)):
            asked = question("model", units, points, dimensions, 0)
            names = ("bytes", "nanoseconds")[:dimensions]
            for form in ("json", "npz"):
                path = Path(folder) / f"scores.{form}"
                ScoreTable(names, tuple(asked.units), {}).save(path)
                megabytes = round(path.stat().st_size / 1e6, 2)
                told = measured(path, asked.budgets(0.3), Path(folder) / "plan.json")
                rows.append({"question": asked.name, "table": form, "table MB": megabytes, **told})
                print(rows[-1], flush=True)
    notes = [
        "Load and solve (with the frontier, under one budget) apart, in a fresh process; `command` is all of "
        "`bitbudget solve SCORES --budget …=… -o PLAN`: imports, table, solving, plan written and forced to disk, report.",
        "Processor seconds are those of the process itself; where other work shares the machine, `command s` is longer.",
    ]
    write("resolve", "Another budget from a saved table", list(rows[0]), rows, notes)


if __name__ == "__main__":
    main()
