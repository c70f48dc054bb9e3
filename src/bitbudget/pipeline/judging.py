"""What is done between scores and writing, once: the scales searched again and the guard's judgement stay in the cache folder, so a
run that is killed while it writes goes on writing.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from bitbudget.calibration.tokens import fingerprint as tokens_fingerprint
from bitbudget.checkpoint.atomic import make_folder, write_atomic
from bitbudget.pipeline.calibrate import rescaled
from bitbudget.pipeline.guard import Candidate, Judged, judge
from bitbudget.pipeline.output import PlannedLayer
from bitbudget.pipeline.planning import Planner
from bitbudget.pipeline.texts import Sample
from bitbudget.pipeline.work import DIGITS, fingerprint
from bitbudget.transforms.fold import Fold


def scaled_again(planner: Planner, layers: Sequence[PlannedLayer]) -> Fold:
    """AWQ's scales, searched once more with every layer at its own choice."""
    depends = {"layers": _choices(layers), "awq": asdict(planner.awq), "text": tokens_fingerprint(planner.sequences)}
    path = planner.work.path("scales again", f"{fingerprint(depends)[:DIGITS]}.safetensors")
    if path.is_file():
        return Fold.load(path)
    fold = rescaled(planner.stream(), planner.sequences, planner.awq, layers, planner.run.progress)
    make_folder(path.parent)
    fold.save(path)
    return fold


def judged(planner: Planner, candidates: Sequence[Candidate], text: Sample) -> tuple[Judged, ...]:
    """The guard's measurements of every candidate, in their order."""
    depends: dict[str, Any] = {
        "text": tokens_fingerprint(text.sequences),
        "candidates": [
            [one.name, _choices(one.layers), one.preparation.fold.fingerprint, one.predicted] for one in candidates
        ],
    }
    path = planner.work.path("guard", f"{fingerprint(depends)[:DIGITS]}.json")
    if path.is_file():
        with suppress(ValueError, TypeError):  # damaged: judged again
            return tuple(Judged(**one) for one in json.loads(path.read_bytes()))
    where = planner.device, planner.dtype
    found = judge(planner.source, candidates, text.sequences, where, planner.run.progress)
    make_folder(path.parent)
    write_atomic(path, json.dumps([asdict(one) for one in found], indent=1).encode() + b"\n")
    return found


def _choices(layers: Sequence[PlannedLayer]) -> dict[str, str]:
    return {planned.layer.name: str(planned.choice) for planned in layers}
