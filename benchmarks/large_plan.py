"""A budget on a large model: how long does each stage take, in how much memory, against one streamed forward pass?

    python benchmarks/large_plan.py [--blocks 25] [--folder DIR] [--weights 1GiB]

Makes the random checkpoint of `large_model.py` (3.08 GiB with its 25 blocks; fewer for a shorter run), forecasts it, streams it
once over the calibration tokens of `--effort fast`, then runs `bitbudget quantize --effort fast` in a process of its own, sampled
every 10 ms.
Writes benchmarks/results/large_plan.json.
"""

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

import large_model
import torch
from sampling import sampled

from bitbudget.methods import METHODS
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.effort import EFFORTS
from bitbudget.pipeline.forecast import forecast
from bitbudget.pipeline.planning import Planner, Settings
from bitbudget.pipeline.progress import Run
from bitbudget.pipeline.runlog import run_log_path

RESULT = Path(__file__).parent / "results" / "large_plan.json"


def forward_seconds(folder: Path) -> tuple[int, float]:
    """Tokens, and seconds of one streamed forward pass over the calibration sequences of `fast`."""
    settings = Settings(METHODS["llm-mq"].recipe(), EFFORTS["fast"], cache=folder.parent / "cache")
    planner = Planner(SourceModel.open(folder), settings, Run("cpu"))
    ids = [sequence.ids for sequence in planner.sequences]
    stream = planner.stream()
    stream.start(ids[:1])  # probes the chain of blocks, which is no part of the pass
    started = time.perf_counter()
    stream.forward(ids)
    return sum(map(len, ids)), time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=large_model.BLOCKS)
    parser.add_argument("--folder", type=Path, default=Path("large-plan"))
    parser.add_argument("--weights", default="1GiB")
    arguments = parser.parse_args()
    large_model.BLOCKS = arguments.blocks
    large_model.SHARD_BYTES = min(large_model.SHARD_BYTES, 28 * 10**6 * arguments.blocks + 10**8)
    model, output = arguments.folder / "model", arguments.folder / "out"
    if not (model / "config.json").is_file():
        large_model.make(model)
    shutil.rmtree(output, ignore_errors=True)
    shutil.rmtree(arguments.folder / "cache", ignore_errors=True)
    run_log_path(output).unlink(missing_ok=True)
    told = forecast(model, effort="fast")
    tokens, forward = forward_seconds(model)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = ["--weights", arguments.weights, "--effort", "fast", "--cache", str(arguments.folder / "cache")]
    command = [sys.executable, "-m", "bitbudget", "quantize", str(model), "-o", str(output), "--json", *options]
    run = sampled(command)
    if run.code:
        sys.exit(run.output)
    log = json.loads(run_log_path(output).read_text().splitlines()[-1])
    record = json.loads((output / "bitbudget.json").read_text())
    before = log["seconds"].get("check", 0) + sum(
        seconds for name, seconds in log["seconds"].items() if "model, block by block" in name or name == "compare"
    )
    plan_and_quantize = run.seconds - before
    result = {
        "blocks": arguments.blocks,
        "source_bytes": sum(path.stat().st_size for path in model.glob("*.safetensors")),
        "budget": arguments.weights,
        "weights_bytes": record["output"]["weights_bytes"],
        "calibration_tokens": tokens,
        "forward_seconds": round(forward, 1),
        "plan_and_quantize_seconds": round(plan_and_quantize, 1),
        "times_the_forward": round(plan_and_quantize / forward, 2),
        "peak_bytes": run.peak_bytes,
        "stages": log["seconds"],
        "forecast": {stage.name: round(stage.most_seconds, 1) for stage in told.planning}
        | {stage.name: round(stage.seconds or 0.0, 1) for stage in told.stages},
        "guard": {"winner": record["guard"]["winner"], "kl": [one["kl"] for one in record["guard"]["candidates"]]},
        "threads": torch.get_num_threads(),
        "load_1_minute": os.getloadavg()[0],
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
