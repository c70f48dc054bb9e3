"""What sparse outliers do to the layers that were given heavy tails: errors of their outputs at 2 bits, ours beside AWQ's.

    python benchmarks/llm_mq/planted_errors.py [--model twin] [--cache FOLDER]

For every q, k, v, gate and up of the model: E|(W' − W) x|² / E|W x|², x being its inputs in the original model on passages that
nothing was made with, W' what it decodes to with scales undone. AWQ: scales searched at int2:g128, ranges searched; ours: 0.5 %
outliers besides, with the scales that scores are made with, and with scales searched once more. All ranges by the same rule.
The cache of `curves.py` serves. Writes `results/planted_errors_MODEL.json`.
"""

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from curves import AGAIN_TOKENS, OURS, clipping, linears_by, planner_of
from jaxtyping import Float
from opening import described, opened
from single_layers import RESULTS
from texts import unused_documents, windows
from torch import Tensor

from bitbudget.calibration.tokens import TokenSequence
from bitbudget.models.gradients import captured_inputs
from bitbudget.models.layers import Layer
from bitbudget.models.stream import BlockStream
from bitbudget.pipeline.calibrate import rescaled
from bitbudget.pipeline.effort import WINDOW
from bitbudget.pipeline.output import PlannedLayer
from bitbudget.pipeline.prepare import Preparation
from bitbudget.pipeline.progress import Silent
from bitbudget.transforms.awq import Awq

PLANTED = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
MEASURED = 8
AWQ, OUTLIERS = "int2:g128", "int2:g128+outliers:0.5%"


def second_moments(
    stream: BlockStream, layers: Sequence[Layer], sequences: Sequence[TokenSequence]
) -> dict[str, Float[Tensor, "in in"]]:
    """Σ x xᵀ of every layer's inputs."""
    states = stream.start([sequence.ids for sequence in sequences])
    found: dict[str, Tensor] = {}
    for index in range(stream.block_count):
        modules = {layer.name: stream.model.get_submodule(layer.module) for layer in layers if layer.block == index}
        with captured_inputs(modules) as seen:
            stream.run_block(index, states)
        found |= {name: sum(x.double().T @ x.double() for x in calls) for name, calls in seen.items()}
    return found


def decoded(planned: PlannedLayer, weight: Tensor, preparation: Preparation) -> Float[Tensor, "out in"]:
    """What a layer decodes to, without its scales."""
    values = preparation.fitted(planned, weight).decoded(torch.float32).double()
    factors = preparation.fold.factors.get(planned.layer.tensor)
    if factors is None:
        return values
    rows = 1.0 if factors.rows is None else factors.rows.double()[:, None]
    columns = 1.0 if factors.columns is None else factors.columns.double()
    return values / rows / columns


def relative_errors(
    plan: Sequence[PlannedLayer], preparation: Preparation, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]
) -> dict[str, float]:
    found = {}
    for planned in plan:
        name = planned.layer.name
        if name in moments:
            own, moment = weights[name].double(), moments[name]
            error = decoded(planned, weights[name], preparation) - own
            found[name] = float((error @ moment * error).sum() / (own @ moment * own).sum())
    return found


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="twin", help="demo, twin, or a folder")
    options.add_argument("--cache", type=Path, help="keeps what was measured")
    asked = options.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder, opened(asked.model) as source:
        planner = planner_of(source, OURS, asked.cache or Path(folder))
        calibration = planner.calibration()
        layers = [layer for layer in source.layers if layer.module.rpartition(".")[2] in PLANTED]
        weights = {layer.name: source.checkpoint.read(layer.tensor) for layer in layers}
        sequences = windows(unused_documents(), planner.tokenizer, MEASURED, WINDOW)
        moments = second_moments(planner.stream(), layers, sequences)
        found = {}
        for label, text in (("AWQ, scale and clip", AWQ), ("ours, scales again", OUTLIERS), ("ours", OUTLIERS)):
            fold = calibration.fold
            if label != "ours":
                plain = linears_by(source, text)
                fold = rescaled(planner.stream(), planner.sequences, Awq(tokens=AGAIN_TOKENS), plain, Silent())
            plan = linears_by(source, clipping(text))
            found[label] = relative_errors(plan, Preparation(calibration, fold), weights, moments)
        model = described(source)
    awq = found["AWQ, scale and clip"]
    ratios: dict[str, dict[str, float]] = {}
    for label in ("ours", "ours, scales again"):
        kinds: dict[str, list[float]] = defaultdict(list)
        for name, error in found[label].items():
            kinds[name.rpartition(".")[2]].append(error / awq[name])
            kinds["all"].append(error / awq[name])
        ratios[label] = {kind: round(geometric_mean(own), 4) for kind, own in sorted(kinds.items())}
    record = {"model": model, "sequences": MEASURED, "ratio_to_awq": ratios, "relative_errors": found}
    (RESULTS / f"planted_errors_{Path(asked.model).name}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(ratios, indent=1))


if __name__ == "__main__":
    main()
