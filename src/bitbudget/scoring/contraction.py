"""p_d[choice, row] = Σ_j g_d[row, j] · Δ[choice, row, j]: what storing a row by a choice changes in the loss of sequence d,
to first order. g_d = G_dᵀ X_d exists for a tile of rows at a time, and every choice's error Δ is made once for all sequences.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bitbudget.threads import mapped

# fp32 numbers that a thread has in memory at a time: 8 MiB of gradients of all sequences, whose product wants many rows, and
# beside them as many errors of all choices.
TILE_WEIGHTS = 2**21


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
    result, like = torch.empty(len(choices), len(factors), shape[0]), factors[0].inputs
    step = max(1, TILE_WEIGHTS // (shape[1] * len(choices)))

    def fill(rows: slice) -> None:
        gradients = like.new_empty(rows.stop - rows.start, len(factors), shape[1])
        for number, own in enumerate(factors):
            torch.mm(own.gradients[:, rows].T, own.inputs, out=gradients[:, number])
        # Once: fresh memory costs more than what fills it.
        errors = like.new_empty(min(step, len(gradients)), len(choices), shape[1])
        for few in _tiles(rows, step):
            count = few.stop - few.start
            for place, choice in enumerate(choices):
                errors[:count, place] = choice.error(few)
            of_few = gradients[few.start - rows.start :][:count]
            result[:, :, few] = torch.bmm(errors[:count], of_few.mT).permute(1, 2, 0).cpu()

    mapped(fill, _tiles(slice(0, shape[0]), TILE_WEIGHTS // (shape[1] * len(factors))), factors[0].inputs.device)
    return result


def _tiles(rows: slice, step: int) -> Iterator[slice]:
    step = max(1, step)
    return (slice(start, min(start + step, rows.stop)) for start in range(rows.start, rows.stop, step))


def contract_rows(
    choices: Sequence[Erring],
    gradients: Sequence[tuple[Int[Tensor, " _"], Float[Tensor, "_ in"]]],
    shape: tuple[int, int],
) -> Float[Tensor, "choices sequences out"]:
    """p_d of an embedding [vocabulary, width], fp32, from the rows of its gradient that are not zero: (ids, ascending; their
    gradients) of every sequence.
    """
    result = torch.zeros(len(choices), len(gradients), shape[0])
    for rows in _tiles(slice(0, shape[0]), TILE_WEIGHTS // (shape[1] * len(choices))):
        errors = torch.stack([choice.error(rows) for choice in choices])
        for number, (ids, own) in enumerate(gradients):
            first, last = torch.searchsorted(ids, torch.tensor([rows.start, rows.stop], device=ids.device)).tolist()
            present = ids[first:last]
            result[:, number, present.cpu()] = (errors[:, present - rows.start] * own[first:last]).sum(-1).cpu()
    return result
