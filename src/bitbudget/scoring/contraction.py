"""p_d[choice, row] = Σ_j g_d[row, j] · Δ[choice, row, j]: what storing a row by a choice changes in the loss of sequence d,
to first order. g_d = G_dᵀ X_d exists for a tile of rows at a time, and every choice's error Δ is made once for all sequences.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bitbudget.threads import mapped

TILE_WEIGHTS = 2**21  # errors of all choices and gradients of all sequences that a thread has in memory at a time: 8 MiB of fp32


@runtime_checkable
class Erring(Protocol):
    """A weight stored by a choice, as far as its errors go (`rounding.Fitted`)."""

    def error(self, rows: slice) -> Float[Tensor, "n in"]:
        """Stored minus original values of some rows, fp32."""
        ...


@runtime_checkable
class FactorsOf(Protocol):
    """X and G = ∂L/∂Y of a linear for one sequence (`models.gradients.Factors`)."""

    @property
    def inputs(self) -> Float[Tensor, "tokens in"]: ...

    @property
    def gradients(self) -> Float[Tensor, "tokens out"]: ...


def contract(
    choices: Sequence[Erring], factors: Sequence[FactorsOf], shape: tuple[int, int]
) -> Float[Tensor, "choices sequences out"]:
    """p_d of a linear [out, in], fp32."""
    result = torch.empty(len(choices), len(factors), shape[0])
    tiles = _tiles(shape[0], TILE_WEIGHTS // (shape[1] * (len(choices) + len(factors))))

    def fill(rows: slice) -> None:
        errors = torch.stack([choice.error(rows) for choice in choices], dim=1)
        gradients = torch.stack([own.gradients[:, rows].T @ own.inputs for own in factors], dim=2)
        result[:, :, rows] = torch.bmm(errors, gradients).permute(1, 2, 0).cpu()

    mapped(fill, tiles, factors[0].inputs.device)
    return result


def _tiles(rows: int, step: int) -> Iterator[slice]:
    step = max(1, step)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def contract_rows(
    choices: Sequence[Erring],
    gradients: Sequence[tuple[Int[Tensor, " _"], Float[Tensor, "_ in"]]],
    shape: tuple[int, int],
) -> Float[Tensor, "choices sequences out"]:
    """p_d of an embedding [vocabulary, width], fp32, from the rows of its gradient that are not zero: (ids, ascending; their
    gradients) of every sequence.
    """
    result = torch.zeros(len(choices), len(gradients), shape[0])
    for rows in _tiles(shape[0], TILE_WEIGHTS // (shape[1] * len(choices))):
        errors = torch.stack([choice.error(rows) for choice in choices])
        for number, (ids, own) in enumerate(gradients):
            first, last = torch.searchsorted(ids, torch.tensor([rows.start, rows.stop], device=ids.device)).tolist()
            present = ids[first:last]
            result[:, number, present.cpu()] = (errors[:, present - rows.start] * own[first:last]).sum(-1).cpu()
    return result
