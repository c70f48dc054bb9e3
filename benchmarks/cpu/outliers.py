"""What outliers cost in rows as uneven as those of real weights: packed with the codes, and in a call of their own.

    python benchmarks/cpu/outliers.py [--shape 4096x4096] [--choice int4:g128] [--share 0.5%]

Layers without outliers, with them, and with them in fp32, which the kernels do not pack, multiply in turn; twelve of each, so that
weights come from memory. Writes benchmarks/cpu/results/outliers.json: medians, microseconds a product with activations of 8 bits.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitbudget.kernels import QuantLinear, use_kernels
from bitbudget.rounding import nearest
from bitbudget.storage import Choice

RESULT = Path(__file__).parent / "results" / "outliers.json"
COPIES = 12
SPREAD = 0.5  # deviation of the logarithm of the rows' scales


def layers(weight: Tensor, choice: str) -> list[QuantLinear]:
    """The same weight at different places in memory."""
    stored = nearest(weight, Choice.parse(choice))
    found = [QuantLinear.from_stored(stored) for _ in range(COPIES)]
    for layer in found:
        use_kernels(layer, "a8")
    return found


def seconds(of: list[QuantLinear], x: Tensor) -> float:
    others = x, x.clone()  # in turn, so that no layer finds its tensor quantized
    began = time.perf_counter()
    for turn, layer in enumerate(of):
        layer(others[turn % 2])
    return (time.perf_counter() - began) / len(of)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--shape", default="4096x4096")
    options.add_argument("--choice", default="int4:g128")
    options.add_argument("--share", default="0.5%")
    options.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 512])
    options.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    asked = options.parse_args()
    rows, columns = (int(side) for side in asked.shape.split("x"))
    generator = torch.Generator().manual_seed(0)
    scales = torch.exp(SPREAD * torch.randn(rows, 1, generator=generator))
    weight = scales * torch.randn(rows, columns, generator=generator)
    sparse = f"{asked.choice}+outliers:{asked.share}"
    ways = {"without": asked.choice, "packed": sparse, "in a call of their own": f"{sparse}:fp32"}
    held = {way: layers(weight, choice) for way, choice in ways.items()}
    found: list[dict[str, Any]] = []
    for threads in asked.threads:
        torch.set_num_threads(threads)
        for tokens in asked.tokens:
            x = torch.randn(tokens, columns, generator=generator)
            few = COPIES if tokens < 64 else 2
            times: dict[str, list[float]] = {way: [] for way in held}
            for _ in range(9 if tokens < 64 else 5):
                for way, of in held.items():
                    times[way].append(seconds(of[:few], x))
            medians = {way: round(1e6 * statistics.median(taken)) for way, taken in times.items()}
            found.append({"threads": threads, "tokens": tokens} | medians)
            print(found[-1], flush=True)
    nbytes = {way: of[0].packed.nbytes for way, of in held.items() if of[0].packed is not None}
    RESULT.write_text(json.dumps({"shape": asked.shape, "choices": ways, "bytes": nbytes, "microseconds": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
