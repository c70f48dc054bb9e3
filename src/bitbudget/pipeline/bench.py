"""`bench`: how fast the layers of a loaded checkpoint multiply on this machine, and how far that is from its memory's speed."""

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from bitbudget.errors import InputError
from bitbudget.kernels.linear import QuantModule, multiplying
from bitbudget.kernels.tensors import empty_weight, read_all

SECONDS = 2.0  # of passes over all layers, after one that warms up
LEAST_PASSES = 5
PROBE_BYTES = 512 << 20  # more than any cache
PROBE_PASSES = 7
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LayerTimes:
    """Layers of one shape and choice. seconds: median of one product. nbytes: that one of them holds, and a product reads."""

    shape: tuple[int, int]
    choice: str
    kernels: str
    layers: int
    seconds: float
    nbytes: int
    stored_bytes: int

    @property
    def bytes_per_second(self) -> float:
        return self.nbytes / self.seconds

    def to_dict(self, bandwidth: float) -> dict[str, Any]:
        speed = self.bytes_per_second
        return asdict(self) | {"bytes_per_second": speed, "share_of_bandwidth": speed / bandwidth}


@dataclass(frozen=True)
class Bench:
    """tokens: rows of a product. bandwidth: bytes a second that the same threads read from memory."""

    tokens: int
    threads: int
    dtype: str
    bandwidth: float
    rows: tuple[LayerTimes, ...]

    def to_dict(self) -> dict[str, Any]:
        """What `bench --json` prints; totals are over all layers, products one after the other."""
        seconds = sum(row.layers * row.seconds for row in self.rows)
        held = sum(row.layers * row.nbytes for row in self.rows)
        total = {
            "layers": sum(row.layers for row in self.rows),
            "seconds": seconds,
            "nbytes": held,
            "stored_bytes": sum(row.layers * row.stored_bytes for row in self.rows),
            "bytes_per_second": held / seconds,
            "share_of_bandwidth": held / seconds / self.bandwidth,
        }
        own = {"tokens": self.tokens, "threads": self.threads, "dtype": self.dtype, "bandwidth": self.bandwidth}
        return own | {"rows": [row.to_dict(self.bandwidth) for row in self.rows], "total": total}


def bench(model: nn.Module, tokens: int = 1, dtype: torch.dtype = torch.float32, seconds: float = SECONDS) -> Bench:
    """Times every stored linear of a model on the CPU, each with inputs of its own, pass after pass as generation does.

    So a weight is in the caches only if it would be there while the model writes, too.
    """
    modules = [module for _, module in multiplying(model)]
    inputs = {module.shape[1]: torch.randn(tokens, module.shape[1]).to(dtype) for module in modules}
    times = _times(modules, inputs, seconds)
    rows: dict[tuple[Any, ...], list[tuple[QuantModule, float]]] = {}
    for module, taken in zip(modules, times, strict=True):
        rows.setdefault((module.shape, str(module.choice), module.kernels), []).append((module, taken))
    found = tuple(
        LayerTimes(
            shape, choice, kernels, len(group), statistics.median(taken for _, taken in group), *_bytes(group[0][0])
        )
        for (shape, choice, kernels), group in rows.items()
    )
    ordered = tuple(sorted(found, key=lambda row: -row.layers * row.seconds))
    return Bench(tokens, torch.get_num_threads(), str(dtype).removeprefix("torch."), bandwidth(), ordered)


def activation_dtype(name: str) -> torch.dtype:
    """Raises InputError if there are no activations of that dtype."""
    if name not in DTYPES:
        raise InputError(f"Layers are timed with activations of {', '.join(DTYPES)}, not of {name!r}.")
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found


def bandwidth() -> float:
    """Bytes a second that torch's threads read from memory, each in one stream or in eight, whichever is faster here: the median
    of some passes over large pages, in which packed weights lie too.
    """
    probe = empty_weight(PROBE_BYTES).fill_(1)
    rates: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(PROBE_PASSES):
        for side_by_side, found in rates.items():
            found.append(PROBE_BYTES / _seconds(lambda way=side_by_side: read_all(probe, way)))
    return max(statistics.median(found) for found in rates.values())


def _times(modules: list[QuantModule], inputs: dict[int, Tensor], seconds: float) -> list[float]:
    """Median seconds of each module's product."""
    passes: list[list[float]] = []
    with torch.no_grad():
        list(_pass(modules, inputs))
        began = perf_counter()
        while len(passes) < LEAST_PASSES or perf_counter() - began < seconds:
            passes.append(list(_pass(modules, inputs)))
    return [statistics.median(taken) for taken in zip(*passes, strict=True)]


def _pass(modules: list[QuantModule], inputs: dict[int, Tensor]) -> Iterator[float]:
    for module in modules:
        x = inputs[module.shape[1]].clone()  # a tensor of its own, so that no other layer has quantized it
        yield _seconds(lambda module=module, x=x: module.multiply(x, getattr(module, "bias", None)))


def _seconds(work: Any) -> float:
    began = perf_counter()
    work()
    return perf_counter() - began


def _bytes(module: QuantModule) -> tuple[int, int]:
    """That the module holds, and that its stored tensors take."""
    stored = module.choice.nbytes(module.shape)
    return stored if module.packed is None else module.packed.nbytes, stored
