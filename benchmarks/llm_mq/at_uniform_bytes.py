"""At the bytes of uniform plans, what does the whole method lose against what it has to beat?

    python benchmarks/llm_mq/at_uniform_bytes.py [--effort fast] [--models demo twin]

The budget is that of int4:g128, int3:g128 and int2:g128+outliers:0.5% with a 16-bit embedding. The rivals are the guard's: the
best uniform plan with the widest embedding that fits, and a hand recipe; KL on the acceptance part of the packaged text, which
nothing was measured on but by which the guard chooses. Writes `results/at_uniform_bytes.json`.
"""

import argparse
import json
import tempfile
from pathlib import Path

from opening import described, opened

from bitbudget.pipeline.budgets import Budget
from bitbudget.pipeline.by_budget import Options, plan_for
from bitbudget.pipeline.output import DEFAULT_SHARD_BYTES, uniform_plan
from bitbudget.pipeline.progress import Run
from bitbudget.storage import Choice

CHOICES = ("int4:g128", "int3:g128", "int2:g128+outliers:0.5%")
RESULT = Path(__file__).parent / "results" / "at_uniform_bytes.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--effort", default="fast")
    parser.add_argument("--models", nargs="+", default=["demo", "twin"])
    arguments = parser.parse_args()
    rows = []
    for name in arguments.models:
        with opened(name) as source, tempfile.TemporaryDirectory() as cache:
            options = Options(effort=arguments.effort, cache=Path(cache))
            for choice in CHOICES:
                budget = Budget(weights=uniform_plan(source, Choice.parse(choice)).weights_bytes)
                found = plan_for(source, budget, options, DEFAULT_SHARD_BYTES, Run("cpu"))
                assert found.guard is not None, "there is something to choose"
                row = {"model": name, "weights": described(source)["sha256"], "bytes of": choice, **budget.to_dict()}
                rows.append(row | {"taken": found.guard["winner"], "candidates": found.guard["candidates"]})
                for one in found.guard["candidates"]:
                    print(f"{name} {choice}: {one['kl']:.5f} ± {one['kl_se']:.5f}  {one['name']}", flush=True)
    RESULT.write_text(json.dumps({"effort": arguments.effort, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
