"""The Gram matrix of a layer's input, E[x xᵀ], within blocks of neighbouring columns: what a rounding error costs at the output."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

LARGEST_BLOCK = 128
SMALLEST_BLOCK = 16


def block_width(columns: int) -> int:
    """Columns of one block: the largest divisor of a layer's columns between 16 and 128, or 1 where there is none."""
    fitting = (width for width in range(min(LARGEST_BLOCK, columns), SMALLEST_BLOCK - 1, -1) if columns % width == 0)
    return next(fitting, 1)


@dataclass(frozen=True)
class GroupGram:
    """blocks: mean of x xᵀ over tokens within each block of `width` neighbouring columns, fp32."""

    blocks: Float[Tensor, "blocks width width"]

    @classmethod
    def of(cls, inputs: Float[Tensor, "tokens in"]) -> "GroupGram":
        """Of the inputs of a layer, one row a token."""
        return cls(gram_sum(inputs) / len(inputs))

    def of_groups(self, group: int) -> Tensor:
        """For groups of `group` columns: their matrices [groups, group, group], or where groups do not lie within blocks only
        their diagonals [groups, group].
        """
        count, width = self.blocks.shape[:2]
        if width % group or group == 1:
            return self.diagonal.view(-1, group)
        within = self.blocks.view(count, width // group, group, width // group, group)
        return within.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).reshape(-1, group, group)

    @property
    def diagonal(self) -> Float[Tensor, " in"]:
        """E[x²] of every column."""
        return self.blocks.diagonal(dim1=1, dim2=2).flatten()

    def divided(self, factor: Float[Tensor, " in"] | None) -> "GroupGram":
        """Of the input divided by a factor per column, as a layer gets it whose columns were multiplied by it."""
        if factor is None:
            return self
        inverse = (1 / factor).view(self.blocks.shape[:2])
        return GroupGram(self.blocks * inverse[:, :, None] * inverse[:, None, :])


def gram_sum(inputs: Float[Tensor, "tokens in"]) -> Float[Tensor, "blocks width width"]:
    """Σ x xᵀ over tokens, within blocks."""
    blocks = inputs.float().unflatten(1, (-1, block_width(inputs.shape[1]))).transpose(0, 1)
    return torch.bmm(blocks.transpose(1, 2), blocks)
