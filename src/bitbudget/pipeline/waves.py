"""How many sequences go through the model together: as many as keep their hidden states within the scratch limit."""

import torch

from bitbudget.errors import InputError
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.effort import WINDOW


def sequence_bytes(source: SourceModel, dtype: torch.dtype) -> int:
    """What a calibration sequence takes on the disk: its hidden states at all blocks, its gradients at two."""
    width = source.model.get_input_embeddings().embedding_dim * dtype.itemsize
    return (source.block_count + 3) * WINDOW * width


def wave_sequences(source: SourceModel, scratch_bytes: int, dtype: torch.dtype) -> int:
    """Sequences that stay within a scratch limit. Raises InputError for one that is too small for a single sequence."""
    held = sequence_bytes(source, dtype)
    if scratch_bytes < held:
        raise InputError(
            f"The scratch limit of {scratch_bytes:,} bytes is too small: hidden states and gradients of one sequence of {WINDOW} "
            f"tokens take {held:,} bytes at all blocks together. Give at least that with --scratch."
        )
    return scratch_bytes // held
