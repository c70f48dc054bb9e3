"""How fast this machine does what the stages consist of: short runs of the same operations, three seconds in all.

Everything is measured with the thread count that torch has now, at shapes taken from the model and cut to 64 MiB.
"""

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from time import perf_counter

import torch
from torch import Tensor

from bitbudget.errors import OutputError
from bitbudget.pipeline.measure import CHUNK_BYTES
from bitbudget.pipeline.output import fitted
from bitbudget.pipeline.verify import VERIFY_CUT
from bitbudget.rounding import nearest
from bitbudget.storage import Choice

LARGEST_WEIGHT_BYTES = 64 << 20
PROBE_WEIGHTS = 2**21  # one tile of rounding
SECONDS = 0.25  # of every probe of computing
DISK_BYTES = 64 << 20
DISK_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class Speeds:
    """Per second: multiply-adds count as two FLOP; bytes of files; weights stored and decoded by a choice."""

    threads: int
    flops: float
    elementwise: float  # elements read, changed and written in the compute dtype
    read_bytes: float  # from the disk
    cached_bytes: float  # from a file that is in the page cache
    write_bytes: float  # to the disk, synced
    hash_bytes: float
    look_weights: float  # looked through for NaN and infinity
    load_weights: float  # turned from the file's dtype into the compute dtype on the device
    store_weights: float
    decode_weights: float
    compare_logits: float  # pairs of logits whose divergence is summed in fp64

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Kind:
    """What is typical of a model: its largest linear [out, in] and that one's dtype and choice, its vocabulary."""

    shape: tuple[int, int]
    dtype: torch.dtype
    choice: Choice
    vocabulary: int


def measure_speeds(kind: Kind, device: torch.device, dtype: torch.dtype) -> Speeds:
    """Speeds for models of a kind that are computed on `device` in `dtype`.

    Raises:
        OutputError: neither the working folder nor the folder for temporary files can be written.
    """
    columns = kind.shape[1]
    rows = max(1, min(kind.shape[0], LARGEST_WEIGHT_BYTES // 4 // columns))
    inputs = torch.full((VERIFY_CUT.window, columns), 0.5, device=device, dtype=dtype)
    weight = torch.full((rows, columns), 0.01, device=device, dtype=dtype)
    matmul = rate(lambda: torch.nn.functional.linear(inputs, weight), device)
    written, fresh, cached = _disk()
    return Speeds(
        threads=torch.get_num_threads(),
        flops=2 * VERIFY_CUT.window * rows * columns * matmul,
        elementwise=inputs.numel() * rate(lambda: inputs * inputs, device),
        read_bytes=fresh,
        cached_bytes=cached,
        write_bytes=written,
        compare_logits=_compare_rate(kind.vocabulary, device),
        **_weight_rates(kind, (min(rows, max(1, PROBE_WEIGHTS // columns)), columns), device, dtype),
    )


def _weight_rates(kind: Kind, shape: tuple[int, int], device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Rates of what happens to single weights; random ones, because rounding's speed may depend on values."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).to(kind.dtype)
    cpu = torch.device("cpu")
    choice = (None if kind.choice.kept else fitted(kind.choice, shape)) or Choice.parse("int4")
    stored = nearest(weight, choice)
    memory = weight.view(torch.uint8).reshape(-1).numpy().data
    count = weight.numel()
    return {
        "hash_bytes": weight.nbytes * rate(lambda: sha256(memory).digest(), cpu),
        "look_weights": count * rate(lambda: torch.isfinite(weight).all(), cpu),
        "load_weights": count * rate(lambda: weight.clone().to(device, dtype), device),
        "store_weights": count * rate(lambda: nearest(weight, choice), cpu),
        "decode_weights": count * rate(lambda: stored.dequantize().to(device, dtype), device),
    }


def _compare_rate(vocabulary: int, device: torch.device) -> float:
    """Pairs of logits a second, by the operations of `measure`."""
    rows = max(1, min(VERIFY_CUT.window, CHUNK_BYTES // (8 * vocabulary)))
    one, other = torch.zeros(rows, vocabulary, device=device), torch.ones(rows, vocabulary, device=device)

    def compare() -> Tensor:
        log_p, log_q = torch.log_softmax(one.double(), -1), torch.log_softmax(other.double(), -1)
        agreeing = (log_p.argmax(-1) == log_q.argmax(-1)).sum()
        return (log_p.exp() * (log_p - log_q)).sum() + agreeing

    return one.numel() * rate(compare, device)


def rate(operation: Callable[[], object], device: torch.device) -> float:
    """Runs a second, after one that warms up."""
    operation()
    _wait(device)
    started, runs = perf_counter(), 0
    while runs == 0 or perf_counter() - started < SECONDS:
        operation()
        runs += 1
        _wait(device)
    return runs / (perf_counter() - started)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _disk() -> tuple[float, float, float]:
    """Bytes a second: written and synced, read from the disk, read from the page cache.

    The nameless file lies where outputs are likely to go: in the working folder, or else among temporary files.
    """
    for folder in (os.getcwd(), tempfile.gettempdir()):
        with suppress(OSError), tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            return _disk_rates(file.fileno())
    raise OutputError(
        f"The speed of the disk cannot be measured: neither {os.getcwd()} nor {tempfile.gettempdir()} takes a file of "
        f"{DISK_BYTES:,} bytes. Make room, or ask for the forecast without its probe."
    )


def _disk_rates(descriptor: int) -> tuple[float, float, float]:
    content = memoryview(bytearray(os.urandom(DISK_CHUNK_BYTES)))  # no file system compresses this
    started = perf_counter()
    for offset in range(0, DISK_BYTES, DISK_CHUNK_BYTES):
        os.pwrite(descriptor, content, offset)
    os.fsync(descriptor)
    written = perf_counter() - started
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    fresh = _read_seconds(descriptor, content)
    cached = _read_seconds(descriptor, content)
    return DISK_BYTES / written, DISK_BYTES / fresh, DISK_BYTES / cached


def _read_seconds(descriptor: int, buffer: memoryview) -> float:
    started = perf_counter()
    for offset in range(0, DISK_BYTES, DISK_CHUNK_BYTES):
        os.preadv(descriptor, [buffer], offset)
    return perf_counter() - started
