"""What each stage of `quantize` will take: peak memory and seconds, derived from how the stages hold tensors and what they do.

The sums follow `quantize.py` (one tensor and what the one before left behind), `checks.py` (tiles), and `stream.py` with
`measure.py` (one block, the hidden states of all windows, both heads, logits in flight). When one of those changes, so
must the sum here; tests/pipeline/test_forecast_stages.py compares with measured peaks.

Memory is what a process holds by itself: RssAnon + RssShmem on Linux, pages of files not counted.
"""

import resource
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bitbudget.models.layers import Layer
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.cache_size import longest_context
from bitbudget.pipeline.checks import TILE_BYTES as LOOK_BYTES
from bitbudget.pipeline.measure import CHUNK_BYTES
from bitbudget.pipeline.plan import Plan, PlannedLayer
from bitbudget.pipeline.probe import Speeds
from bitbudget.pipeline.verify import VERIFY_CUT
from bitbudget.rounding.nearest import TILE_WEIGHTS
from bitbudget.storage.stored import TILE_BYTES as DECODE_BYTES

ROUNDING_BYTES = 18  # a weight of a tile: itself, its scale, zero and quotient in fp32, its code and the packing
DECODING_BYTES = 20  # a weight of a tile: the sum, the part, scale and zero in fp32, its code and the unpacking
COMPARED_CHUNKS = 5  # arrays of CHUNK_BYTES alive in `measure` while divergences are summed
# glibc serves allocations below a limit that grows to 32 MiB from a heap, and gives the heap's end back only when twice
# the limit lies free (mallopt(3), M_MMAP_THRESHOLD).
HEAP_LIMIT = 32 << 20
LINEAR_PASSES = 4  # elementwise passes over what the linears of a block return: activation, products, rotations, residual
NORM_PASSES = 16  # over the hidden state: two norms in steps


@dataclass(frozen=True)
class Stage:
    """One stage of a run. ram_bytes: peak of the process; device_bytes: of the accelerator; None: not asked or measured."""

    name: str
    ram_bytes: int
    device_bytes: int
    disk_bytes: int
    scratch_bytes: int
    seconds: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Work:
    """The sizes that the sums are made of. `outside`: parameters that a stream loads beside the blocks (norm, head …)."""

    source: SourceModel
    plan: Plan
    device: torch.device
    dtype: torch.dtype

    @property
    def window(self) -> int:
        return min(VERIFY_CUT.window, longest_context(self.source.config) or VERIFY_CUT.window)

    @property
    def head_weights(self) -> int:
        return self.vocabulary * self.width

    @property
    def vocabulary(self) -> int:
        return int(self.source.model.get_input_embeddings().weight.shape[0])

    @property
    def width(self) -> int:
        return int(self.source.model.get_input_embeddings().weight.shape[1])

    @property
    def states_bytes(self) -> int:
        """Hidden states of all windows."""
        return (VERIFY_CUT.tokens or 0) * self.width * self.dtype.itemsize

    @property
    def logits_bytes(self) -> int:
        """Logits of one window."""
        return self.window * self.vocabulary * self.dtype.itemsize

    def blocks(self) -> list[list[PlannedLayer]]:
        """Planned linears by block."""
        found: dict[int, list[PlannedLayer]] = {}
        for planned in self.plan.layers:
            if planned.layer.block is not None:
                found.setdefault(planned.layer.block, []).append(planned)
        return list(found.values())

    def block_weights(self) -> list[int]:
        """Parameters of every block, those of experts and norms included."""
        blocks = self.source.model.get_submodule(self.source.places.blocks)
        return [sum(parameter.numel() for parameter in block.parameters()) for block in blocks.children()]

    def outside_weights(self) -> int:
        """Parameters that lie in no block and are no input embedding, the head (tied or not) included."""
        places = self.source.places
        named = self.source.model.named_parameters(remove_duplicate=False)
        outer = (f"{places.blocks}.", f"{places.embedding}.")
        return sum(parameter.numel() for name, parameter in named if not name.startswith(outer))


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


def forecast_stages(work: Work, base: int, speeds: Speeds | None) -> tuple[Stage, ...]:
    """All stages of `quantize` with its verification; `base`: what the process holds before the first."""
    peaks = stage_peaks(work)
    seconds = {} if speeds is None else stage_seconds(work, speeds)
    written = {"quantize": work.plan.disk_bytes}
    return tuple(
        Stage(name, base + ram, device, written.get(name, 0), 0, seconds.get(name))
        for name, (ram, device) in peaks.items()
    )
