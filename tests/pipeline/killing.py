"""Runs `quantize` in processes that are killed in the middle: `python killing.py FILE` with the settings in a JSON file.

Settings: model, output, cache, bits, shard, seed, kills (0: undisturbed), and method (bits, groups and so on, if it is not the
default). Prints the moments that the last run reached. The processes are forked, so torch is loaded once.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bitbudget.methods import LlmMq
from bitbudget.pipeline.api import quantize
from bitbudget.pipeline.budgets import Budget
from bitbudget.pipeline.by_budget import Options

Moment = tuple[str, int, float]  # a stage, how much of it is done (what is skipped counts), seconds to the next moment


class Telling:
    """Progress that writes every step into a pipe."""

    def __init__(self, descriptor: int) -> None:
        self._pipe = os.fdopen(descriptor, "w", buffering=1)
        self._stage, self._done = "", 0

    def start(self, stage: str, total: int) -> None:
        self._stage, self._done = stage, 0
        self.advance(0)

    def advance(self, amount: int) -> None:
        self._done += amount
        self._pipe.write(f"{self._done} {self._stage}\n")

    def finish(self) -> None:
        self.advance(0)


def started(settings: dict[str, Any]) -> tuple[int, int]:
    """A process that quantizes, and the pipe that it tells its progress."""
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    os.close(reading)
    method = LlmMq(**{name: tuple(values) for name, values in settings["method"].items()}) if settings["method"] else "llm-mq"
    options = Options(method, "fast", cache=Path(settings["cache"]))
    quantize(
        settings["model"], Budget(bits=settings["bits"]), settings["output"], options=options, device="cpu",
        max_shard_bytes=settings["shard"], progress=Telling(writing),
    )  # fmt: skip
    os._exit(0)


def moments(settings: dict[str, Any], until: Moment | None, delay: float) -> tuple[list[Moment], bool]:
    """Lets a process run, to its end or until a moment and a while longer; returns its moments, and whether that one came."""
    process, reading = started(settings)
    seen: list[tuple[str, int, float]] = []
    came = False
    with os.fdopen(reading) as pipe:
        for line in pipe:
            done, stage = line.rstrip("\n").split(" ", 1)
            seen.append((stage, int(done), time.monotonic()))
            if until is not None and stage == until[0] and int(done) >= until[1]:
                time.sleep(delay)
                os.kill(process, signal.SIGKILL)
                came = True
                break
    _, status = os.waitpid(process, 0)
    assert until is not None or status == 0, "an undisturbed run succeeds"
    ends = [at for _, _, at in seen[1:]] + [time.monotonic()]
    return [(stage, done, end - at) for (stage, done, at), end in zip(seen, ends, strict=True)], came


def chosen(every: list[Moment], kills: int, generator: random.Random) -> list[Moment]:
    """Moments of all stages in turn, in the order of the run, so that each is still ahead when its turn comes."""
    stages = list(dict.fromkeys(stage for stage, _, _ in every))
    generator.shuffle(stages)
    places: set[int] = set()
    while len(places) < kills:
        stage = stages[len(places) % len(stages)]
        places.add(generator.choice([place for place, moment in enumerate(every) if moment[0] == stage]))
    return [every[place] for place in sorted(places)]


def main() -> None:
    torch.set_num_threads(1)
    settings = json.loads(Path(sys.argv[1]).read_text())
    generator = random.Random(settings["seed"])
    if settings["kills"]:
        for moment in chosen([tuple(entry) for entry in settings["moments"]], settings["kills"], generator):
            _, came = moments(settings, moment, generator.uniform(0, moment[2]))
            print(moment, "killed" if came else "was over before", file=sys.stderr)
    json.dump(moments(settings, None, 0.0)[0], sys.stdout)


if __name__ == "__main__":
    main()
