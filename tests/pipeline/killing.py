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

Moment = tuple[str, int]  # a stage, and how often it has told of its progress
LONGEST = 0.05  # seconds between a moment and the kill


class Telling:
    """Progress that writes every step into a pipe."""

    def __init__(self, descriptor: int) -> None:
        self._pipe = os.fdopen(descriptor, "w", buffering=1)
        self._stage = ""

    def start(self, stage: str, total: int) -> None:
        self._stage = stage
        self.advance(0)

    def advance(self, amount: int) -> None:
        self._pipe.write(self._stage + "\n")

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


def moments(settings: dict[str, Any], until: Moment | None, delay: float) -> list[Moment]:
    """Lets a process run, to its end or until a moment and a while longer; returns the moments that it reached."""
    process, reading = started(settings)
    seen: list[Moment] = []
    counts: dict[str, int] = {}
    with os.fdopen(reading) as pipe:
        for line in pipe:
            stage = line.strip()
            counts[stage] = counts.get(stage, 0) + 1
            seen.append((stage, counts[stage]))
            if seen[-1] == until:
                time.sleep(delay)
                os.kill(process, signal.SIGKILL)
                break
    _, status = os.waitpid(process, 0)
    assert until is not None or status == 0, "an undisturbed run succeeds"
    return seen


def main() -> None:
    torch.set_num_threads(1)
    settings = json.loads(Path(sys.argv[1]).read_text())
    if settings["kills"]:
        generator = random.Random(settings["seed"])
        every = [tuple(moment) for moment in settings["moments"]]
        # In order, so that each is still ahead when its turn comes.
        for place in sorted(generator.sample(range(len(every)), settings["kills"])):
            reached = moments(settings, every[place], generator.uniform(0, LONGEST))
            print(every[place], "reached" if every[place] in reached else "was over before", file=sys.stderr)
    json.dump(moments(settings, None, 0.0), sys.stdout)


if __name__ == "__main__":
    main()
