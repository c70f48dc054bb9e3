"""Another budget from a saved score table, as a fresh process: seconds of solving, and of everything.

python benchmarks/solver/resolve.py
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from instances import question
from record import write

from bitbudget.allocation import ScoreTable

COMMAND = """
import json, sys, time
from pathlib import Path
from bitbudget.allocation import ScoreTable, plan_from_table
started = time.perf_counter()
before = time.process_time()
table = ScoreTable.load(Path(sys.argv[1]))
loaded = time.perf_counter()
spent = time.process_time()
plan = plan_from_table(table, json.loads(sys.argv[2]))
solved = time.perf_counter()
processor = {"load processor": spent - before, "solve processor": time.process_time() - spent}
plan.save(Path(sys.argv[3]))
print(json.dumps({"load": loaded - started, "solve": solved - loaded, "optimal": plan.optimal, "gap": plan.gap, **processor}))
"""


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for units, points, dimensions in ((224, 40, 1), (500, 40, 1), (500, 40, 2), (5000, 40, 1)):
            asked = question("model", units, points, dimensions, 0)
            names = ("bytes", "nanoseconds")[:dimensions]
            for form in ("json", "npz"):
                path = Path(folder) / f"scores.{form}"
                ScoreTable(names, tuple(asked.units), {}).save(path)
                budgets = json.dumps(asked.budgets(0.3))
                started = time.perf_counter()
                command = [sys.executable, "-c", COMMAND, str(path), budgets, str(Path(folder) / "plan.json")]
                output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                told = json.loads(output)
                rows.append(
                    {
                        "question": asked.name,
                        "table": form,
                        "table MB": round(path.stat().st_size / 1e6, 2),
                        "load s": round(told["load"], 2),
                        "solve s": round(told["solve"], 2),
                        "load processor s": round(told["load processor"], 2),
                        "solve processor s": round(told["solve processor"], 2),
                        "whole process s": round(time.perf_counter() - started, 2),
                        "proven": told["optimal"],
                        "gap": float(f"{told['gap']:.1e}"),
                    }
                )
                print(rows[-1], flush=True)
    notes = [
        "Fresh processes: imports, table, solving, the frontier (one budget), plan written and forced to disk.",
        "Processor seconds are those of the process itself; where other work shares the machine, the others are longer.",
    ]
    write("resolve", "Another budget from a saved table", list(rows[0]), rows, notes)


if __name__ == "__main__":
    main()
