"""What the sum of single losses leaves out: losses of whole plans beside sums of the layers' measured losses.

    python benchmarks/llm_mq/interactions.py demo,twin,third

Reads `results/single_layers_MODEL.json` and `results/pairs_MODEL.json`, which must be of one model; measures nothing. A layer's own
loss is here as it was measured, so what is missing is no fault of the scores. `gate and up` adds 2·√(gate·up) for every block: what
two errors would lose together if they pointed the same way. Writes `results/interactions.md`.
"""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scipy.stats import linregress
from single_layers import RESULTS

Losses = dict[tuple[str, str], float]
Plan = Mapping[str, str]
GATE, UP = "gate_proj", "up_proj"
TITLES = ("model", "bits", "measured, nats", "scores", "measured singles", "singles, gate and up", "left over / gate and up")


def single_losses(runs: Iterable[Mapping[str, Any]]) -> Losses:
    """(layer, choice) -> nats per token; what was measured on the plans' own text, the first run, comes before the rest."""
    found: Losses = {}
    for run in runs:
        for layer, own in run["layers"].items():
            for choice, loss in own.items():
                found.setdefault((layer, choice), loss["kl"])
    return found


def together(plan: Plan, losses: Losses) -> float:
    """2·√(gate·up), summed over the blocks."""
    gates = (name for name in plan if name.endswith(GATE))
    pairs = (((gate, plan[gate]), (up, plan[up])) for gate in gates for up in (gate.replace(GATE, UP),))
    return sum(2 * math.sqrt(losses[gate] * losses[up]) for gate, up in pairs)


def compared(predicted: Sequence[float], measured: Sequence[float]) -> str:
    found = linregress(predicted, measured)
    return f"{found.rvalue:.3f}, {found.slope:.2f}"


def row_of(model: str, run: Mapping[str, Any], losses: Losses) -> str:
    """One budget: correlations of measured losses with three sums, and of what the second leaves over with gate and up."""
    plans = run["measured"]["plans"]
    measured = [plan["kl"] for plan in plans]
    singles = [sum(losses[choice] for choice in plan["choices"].items()) for plan in plans]
    pairs = [together(plan["choices"], losses) for plan in plans]
    left = [whole - single for whole, single in zip(measured, singles, strict=True)]
    cells = [model, str(run["bits"]), f"{min(measured):.2f} … {max(measured):.2f}"]
    for sums in ([plan["predicted"] for plan in plans], singles, [sum(both) for both in zip(singles, pairs, strict=True)]):
        cells.append(compared(sums, measured))
    return f"| {' | '.join([*cells, f'{linregress(pairs, left).rvalue:.2f}'])} |"


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    lines = [
        "# What layers lose together",
        "",
        "Made by `interactions.py`. 40 random plans of equal bytes at each budget: Pearson's correlation and slope of their",
        "measured loss over three sums, and the correlation of what measured singles leave over with the gates' and ups' part.",
        "",
        f"| {' | '.join(TITLES)} |",
        f"|{'---|' * len(TITLES)}",
    ]
    for model in sys.argv[1].split(","):
        singles, pairs = (json.loads((RESULTS / f"{kind}_{model}.json").read_text()) for kind in ("single_layers", "pairs"))
        if singles["model"] != pairs["model"]:
            sys.exit(f"The results of {model} are of two models: {singles['model']['sha256']} and {pairs['model']['sha256']}.")
        losses = single_losses(singles["runs"])
        lines += [row_of(model, run, losses) for run in sorted(pairs["runs"], key=lambda run: float(run["bits"]))]
    (RESULTS / "interactions.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
