"""Peak memory of every stage, added up from what the code of that stage holds at once.

quantize: the tensor being read beside what the one before left (`quantize.py`). check: tiles (`checks.py`). The
streams: one block, the hidden states of all windows (`stream.py`). compare: both heads and the logits of one window
(`measure.py`).
When one of those changes, so must the sum here.

Counted is what a process holds by itself, RssAnon + RssShmem on Linux; pages of files are not.
"""

import math
import resource
import sys
from pathlib import Path

from bitbudget.checkpoint.read import CONVERT_BYTES
from bitbudget.models.layers import Layer
from bitbudget.pipeline.checks import TILE_BYTES as LOOK_BYTES
from bitbudget.pipeline.measure import CHUNK_BYTES
from bitbudget.pipeline.output import PlannedLayer
from bitbudget.pipeline.quantize import FINITE_PIECE
from bitbudget.pipeline.workload import Workload, weights
from bitbudget.rounding.fitted import TILE_WEIGHTS
from bitbudget.storage.stored import TILE_BYTES as DECODE_BYTES

Peak = tuple[int, int]  # bytes of main memory beyond the process's base, bytes of the accelerator

LOOKING_COPIES = 3  # of a 16-bit tile: itself, its magnitudes, two masks of a byte
ROUNDING_BYTES = 18  # a weight of a tile: itself, scale, zero and quotient in fp32, its code and the packing
DECODING_BYTES = 20  # a weight of a tile: the sum, the part, scale and zero in fp32, its code and the unpacking
TABLE_BYTES = 24  # a group: scale and zero in fp32, as fitted, joined and rounded
COMPARED_CHUNKS = 5  # both log-probabilities, a probability, a difference and their product
HIDDEN_COPIES, WIDE_COPIES = 6, 3  # of one window inside a block: of its hidden state, of its widest linear's result
# glibc serves allocations below a limit, which grows with them to 32 MiB, from a heap, and gives the heap's end back
# when twice that limit lies free there (mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD).
HEAP_LIMIT = 32 << 20


def memory_now() -> int:
    """Bytes that this process holds by itself; where the system does not say, the most it ever held."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = [line.split() for line in status.read_text("utf-8").splitlines()]
        held = [int(line[1]) for line in lines if line and line[0] in ("RssAnon:", "RssShmem:")]
        if held:
            return 1024 * sum(held)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def stage_peaks(work: Workload) -> dict[str, Peak]:
    """Peaks of all stages in order, each with what the heap keeps of the stages up to it."""
    peaks = {
        "quantize": (_quantize(work), 0),
        "check": (_check(work), 0),
        "original model": _original(work),
        "stored model": _stored(work),
        "compare": _compare(work),
    }
    kept = _heap(work)
    return {name: (ram + kept[name], device) for name, (ram, device) in peaks.items()}


def _quantize(work: Workload) -> int:
    peak = before = left = 0  # left: what was stored of the tensor before, which lives until this one is stored
    for info, planned in work.tensors():
        count = math.prod(info.shape)
        looking = min(count, FINITE_PIECE) * (info.dtype.itemsize + 2)
        storing = 0 if planned is None else _rounding(planned)
        peak = max(peak, before + info.nbytes, left + info.nbytes + max(looking, storing))
        left = info.nbytes if planned is None else planned.nbytes
        before = info.nbytes if planned is None else info.nbytes + planned.nbytes
    return peak


def _rounding(planned: PlannedLayer) -> int:
    """Codes, once in tiles and once joined, tables, and the temporaries of one tile."""
    tile = max(TILE_WEIGHTS, planned.layer.shape[1])
    return 2 * planned.nbytes + _groups(planned) * TABLE_BYTES + min(weights(planned), tile) * ROUNDING_BYTES


def _groups(planned: PlannedLayer) -> int:
    return sum(math.prod(part.grid.table_shape(planned.layer.shape)) for part in planned.choice.dense)


def _check(work: Workload) -> int:
    stored = [planned for _, planned in work.tensors() if planned is not None]
    kept = [info.nbytes for info, planned in work.tensors() if planned is None]
    looking = LOOKING_COPIES * min(LOOK_BYTES, max(kept, default=0))
    return max(looking, max((planned.nbytes + _groups(planned) * TABLE_BYTES for planned in stored), default=0))


def _original(work: Workload) -> Peak:
    """A block, what of it is just being read, and the hidden states."""
    layers = [planned.layer for block in work.blocks for planned in block]
    return _split(work, _block(work) + work.states_bytes, max((_as_read(work, layer) for layer in layers), default=0))


def _stored(work: Workload) -> Peak:
    """As the original, whose hidden states wait meanwhile; decoding takes a tile and the codes."""
    stored = [planned for block in work.blocks for planned in block if not planned.choice.kept]
    decoding = max((planned.nbytes + _decoding(work, planned) for planned in stored), default=0)
    return _split(work, _block(work) + 2 * work.states_bytes, decoding)


def _decoding(work: Workload, planned: PlannedLayer) -> int:
    tile = min(weights(planned), DECODE_BYTES // 4) * DECODING_BYTES
    return tile if work.device.type == "cpu" else tile + 4 * weights(planned)  # on the CPU the result is the parameter


def _compare(work: Workload) -> Peak:
    both = 2 * (_outside(work) + work.states_bytes)
    loading = _split(work, both + work.logits_bytes, _head_as_read(work))
    return _larger(loading, _split(work, both + 2 * work.logits_bytes + COMPARED_CHUNKS * CHUNK_BYTES, 0))


def _block(work: Workload) -> int:
    """The largest block, and one window inside it."""
    widest = max((planned.layer.shape[0] for block in work.blocks for planned in block), default=0)
    activations = work.window * (HIDDEN_COPIES * work.table[1] + WIDE_COPIES * widest)
    return (max(work.block_weights) + activations) * work.dtype.itemsize


def _outside(work: Workload) -> int:
    return sum(work.outside) * work.dtype.itemsize


def _head_as_read(work: Workload) -> int:
    head = next((e.layer for e in reversed(work.plan.layers) if e.layer.kind in ("head", "tied")), None)
    return 0 if head is None else _as_read(work, head)


def _as_read(work: Workload, layer: Layer) -> int:
    """What of a layer is on its way: a tile in the file's dtype, and on its way to a device the whole layer."""
    whole = math.prod(layer.shape) * work.dtype.itemsize
    tile = 0 if layer.dtype == work.dtype else min(CONVERT_BYTES, math.prod(layer.shape) * layer.dtype.itemsize)
    return tile if work.device.type == "cpu" else tile + whole


def _split(work: Workload, computing: int, reading: int) -> Peak:
    """What computes lies on the device, what is read passes through main memory."""
    return (computing + reading, 0) if work.device.type == "cpu" else (reading, computing)


def _larger(one: Peak, other: Peak) -> Peak:
    return max(one[0], other[0]), max(one[1], other[1])


def _heap(work: Workload) -> dict[str, int]:
    """Freed memory that the heap keeps in each stage; the limit never sinks again."""
    if not sys.platform.startswith("linux"):
        return dict.fromkeys(("quantize", "check", "original model", "stored model", "compare"), 0)
    read = [info.nbytes for info, _ in work.tensors()]
    computed = [weights(planned) * work.dtype.itemsize for block in work.blocks for planned in block]
    computed = computed if work.device.type == "cpu" else []
    largest = max(read, default=0) // 2
    sizes = {
        "quantize": [*read, *(4 * min(weights(e), TILE_WEIGHTS) for block in work.blocks for e in block)],
        "check": [min(LOOK_BYTES, largest * 2)],
        "original model": computed,
        "stored model": computed,
        "compare": [work.logits_bytes, CHUNK_BYTES],
    }
    kept, limit = {}, 0
    for name, candidates in sizes.items():
        limit = max([limit, *(size for size in candidates if size < HEAP_LIMIT)])
        kept[name] = 2 * limit
    return kept
