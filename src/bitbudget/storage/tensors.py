"""What a stored tensor will look like, known before it exists."""

import math
from dataclasses import dataclass, replace

import torch

INDEX_LIMIT = 65_536


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of one tensor in a file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def under(self, prefix: str) -> "TensorSpec":
        """The same tensor with `prefix.` before its name."""
        return replace(self, name=f"{prefix}.{self.name}")


def index_dtype(extent: int) -> torch.dtype:
    """Dtype of indices below `extent`: u16, or i32 above 65,536."""
    return torch.uint16 if extent <= INDEX_LIMIT else torch.int32
