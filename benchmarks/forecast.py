"""Does `forecast` know how long planning takes? Its stages beside those of a run, for every effort.

    python benchmarks/forecast.py [--model demo] [--efforts fast,normal,best] [--bits 3.5]

Forecasts the model, then runs `bitbudget quantize` with an empty cache in a process of its own, and compares seconds by stage.
Writes benchmarks/results/forecast.json. The machine has to be idle.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from sampling import sampled

from bitbudget.pipeline.runlog import run_log_path

RESULT = Path(__file__).parent / "results" / "forecast.json"
OF_GUARD = "scales once more"  # how a stage's name begins that forecast counts in the guard


def forecast(model: str, effort: str) -> dict[str, tuple[float, float]]:
    """Least and most seconds of every stage. The command tells them, for it runs torch's threads as `quantize` does."""
    command = [sys.executable, "-m", "bitbudget", "forecast", model, "--effort", effort, "--json"]
    stages = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)["planning"]
    return {stage["name"]: (stage["least_seconds"], stage["most_seconds"]) for stage in stages}


def measured(model: str, effort: str, bits: str) -> dict[str, float]:
    """Seconds of every stage of a run from nothing."""
    with TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        words = ["--bits", bits, "--effort", effort, "--cache", str(Path(folder) / "cache"), "-o", str(output)]
        run = sampled([sys.executable, "-m", "bitbudget", "quantize", model, *words])
        if run.code:
            sys.exit(run.output)
        seconds: dict[str, float] = json.loads(run_log_path(output).read_text().splitlines()[-1])["seconds"]
    return {f"guard: {name}" if name.startswith(OF_GUARD) else name: own for name, own in seconds.items()}


def beside(told: dict[str, tuple[float, float]], seconds: dict[str, float]) -> dict[str, Any]:
    """least, most: as forecast; measured: the sum of the run's stages that begin with the name."""
    found = {}
    for name, (least, most) in told.items():
        took = sum(own for stage, own in seconds.items() if stage.partition(":")[0] == name)
        ratio = took / most if took > most else least / took if took < least else 1.0
        found[name] = {"least": round(least, 2), "most": round(most, 2), "measured": round(took, 2), "off": round(ratio, 2)}
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default="demo")
    arguments.add_argument("--efforts", default="fast,normal,best")
    arguments.add_argument("--bits", default="3.5")
    asked = arguments.parse_args()
    result: dict[str, Any] = {"model": Path(asked.model).name, "threads": torch.get_num_threads(), "efforts": {}}
    if RESULT.is_file():  # efforts that are not asked for stay
        result["efforts"] = json.loads(RESULT.read_text())["efforts"]
    for effort in asked.efforts.split(","):
        told = forecast(asked.model, effort)
        told["planning"] = tuple(sum(ends) for ends in zip(*told.values(), strict=True))  # type: ignore[assignment]
        seconds = measured(asked.model, effort, asked.bits)
        seconds |= {f"planning: {name}": own for name, own in seconds.items() if name.partition(":")[0] in told}
        result["efforts"][effort] = beside(told, seconds)
        print(effort, json.dumps(result["efforts"][effort], indent=1))
    result["load_1_minute"] = os.getloadavg()[0]
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
