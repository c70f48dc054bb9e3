"""The sizes that a run of `quantize` with its verification is made of; memory and time are sums of them."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from bitbudget.checkpoint.read import TensorInfo
from bitbudget.models.context import longest_context
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.output import OutputPlan, PlannedLayer
from bitbudget.pipeline.verify import VERIFY_CUT

VERIFY_TOKENS = VERIFY_CUT.tokens or 4096


@dataclass(frozen=True)
class Workload:
    """One model, one plan, one device and the dtype it computes in."""

    source: SourceModel
    plan: OutputPlan
    device: torch.device
    dtype: torch.dtype

    @property
    def window(self) -> int:
        """Tokens of one window of the verification."""
        return min(VERIFY_CUT.window, longest_context(self.source.config) or VERIFY_CUT.window)

    @cached_property
    def table(self) -> tuple[int, int]:
        """Shape of the input embedding: vocabulary and width."""
        rows, width = self.source.model.get_input_embeddings().weight.shape
        return int(rows), int(width)

    @property
    def states_bytes(self) -> int:
        """Hidden states of all windows of one model."""
        return VERIFY_TOKENS * self.table[1] * self.dtype.itemsize

    @property
    def logits_bytes(self) -> int:
        """Logits of one window."""
        return self.window * self.table[0] * self.dtype.itemsize

    @cached_property
    def blocks(self) -> list[list[PlannedLayer]]:
        """Planned linears of every block that has some."""
        found: dict[int, list[PlannedLayer]] = {}
        for planned in self.plan.layers:
            if planned.layer.block is not None:
                found.setdefault(planned.layer.block, []).append(planned)
        return list(found.values())

    @cached_property
    def block_weights(self) -> list[int]:
        """Parameters of every block, those of experts and norms included."""
        blocks = self.source.model.get_submodule(self.source.places.blocks)
        return [sum(parameter.numel() for parameter in block.parameters()) for block in blocks.children()]

    @cached_property
    def outside(self) -> list[int]:
        """Sizes of what a stream loads beside the blocks: final norm, head (a tied one too), position embeddings."""
        places = self.source.places
        named = self.source.model.named_parameters(remove_duplicate=False)
        other = (f"{places.blocks}.", f"{places.embedding}.")
        return [parameter.numel() for name, parameter in named if not name.startswith(other)]

    def tensors(self) -> Iterator[tuple[TensorInfo, PlannedLayer | None]]:
        """The source's tensors that are read, in order, with their layers if they are stored by a choice."""
        repeated = {tensor.tensor for tensor in self.plan.kept if tensor.duplicate_of}
        for name, info in self.source.checkpoint.tensors.items():
            planned = self.plan.by_tensor.get(name)
            if name not in repeated:
                yield info, None if planned is None or planned.choice.kept else planned

    @cached_property
    def source_bytes(self) -> int:
        """Bytes of all tensors of the source."""
        return sum(info.nbytes for info in self.source.checkpoint.tensors.values())

    @property
    def stays_cached(self) -> bool:
        """Whether source and output fit into half of the machine's memory, so that reading again needs no disk."""
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return 2 * (self.source_bytes + self.plan.weights_bytes) < memory


def weights(planned: PlannedLayer) -> int:
    """Number of weights of a layer."""
    return math.prod(planned.layer.shape)
