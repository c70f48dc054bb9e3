"""Where parameters come from: the names are those of the files."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bitbudget.checkpoint.read import Checkpoint


@runtime_checkable
class Weights(Protocol):
    """A source of parameters under the names of the files, whatever way they are stored."""

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        """The whole tensor in this dtype, oriented as in the file."""
        ...

    def rows(self, name: str, ids: Int[Tensor, " n"]) -> Float[Tensor, "n width"]:
        """The rows `ids` of a table, in that order."""
        ...


class CheckpointWeights:
    """The tensors of a checkpoint as they are, each read when asked for and not kept."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        """The tensor in a fresh copy; InputError if the file has none of that name or cannot be read."""
        return self.checkpoint.read_as(name, dtype)

    def rows(self, name: str, ids: Int[Tensor, " n"]) -> Float[Tensor, "n width"]:
        """Only those rows are read from the file; IndexError if one does not exist."""
        return self.checkpoint.read_rows(name, ids)
