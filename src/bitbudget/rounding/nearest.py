"""Round to nearest: every weight takes the nearest value of its group's grid.

Two walks over tiles of rows, so that a 16-bit weight is never held in fp32 as a whole: the first finds each group's
range, the second chooses codes against the parameters as they will be stored.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bitbudget.calibration.gram import GroupGram
from bitbudget.errors import InputError
from bitbudget.rounding.fitted import Fitted, FittedPart, Weight, kept_mask, tiles
from bitbudget.storage import Choice, Dense, StoredWeight


def nearest(weight: Weight, choice: Choice, gram: GroupGram | None = None) -> StoredWeight:
    """Store a weight [out, in] (any float dtype) by a choice. Pure: the input is not changed, nothing is random.

    Outliers are the largest |w| of the whole layer; they do not count for the ranges of their groups, and their
    residual against the dense value is stored (LLM-MQ, section 2.1). The rows of a mix are ranked by the squared error
    that the wider grid saves. Where fp16 cannot hold the scales or residuals, bf16 takes their place and the returned
    weight's choice says so. gram: of the layer's input, for ranges that are searched; without it every input counts alike.

    Raises:
        InputError: the choice keeps the weight as it is, or cannot store this shape (`Choice.misfit`).
    """
    return fit(weight, choice, gram).stored()


def fit(weight: Weight, choice: Choice, gram: GroupGram | None = None) -> Fitted:
    """The first walk of `nearest`: outliers, rows of each part and the parameters of every group."""
    return fit_all(weight, [choice], gram)[0]


def fit_all(weight: Weight, choices: Sequence[Choice], gram: GroupGram | None = None) -> list[Fitted]:
    """`fit` by every choice; choices with as many outliers have the same ones, which are looked for once."""
    largest = cache(lambda count: _largest(weight, count))
    return [_fit(weight, choice, gram, largest) for choice in choices]


def _fit(weight: Weight, choice: Choice, gram: GroupGram | None, largest: Callable[[int], Tensor]) -> Fitted:
    shape = (weight.shape[0], weight.shape[1])
    if reason := "it rounds nothing" if choice.kept else choice.misfit(shape):
        raise InputError(f"A weight {list(shape)} cannot be rounded to {choice}: {reason}. Give it another choice.")
    outliers = largest(choice.outliers.count.of(weight.numel())) if choice.outliers else None
    row_sets = _row_sets(weight, choice, outliers, gram)
    parts = [
        FittedPart.of(weight, format, rows, outliers, gram)
        for format, rows in zip(choice.dense, row_sets, strict=True)
    ]
    return Fitted(weight, choice, tuple(parts), outliers)


def _largest(weight: Weight, count: int) -> Int64[Tensor, " count"]:
    """Ascending flat positions of the `count` largest magnitudes; among equal ones the first, so the set is unique."""
    magnitudes = weight.abs().flatten()
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=weight.device)
    threshold = torch.topk(magnitudes, count, sorted=False).values.min()
    above = (magnitudes > threshold).nonzero().squeeze(1)
    ties = (magnitudes == threshold).nonzero().squeeze(1)[: count - len(above)]
    return torch.cat([above, ties]).sort().values


def _row_sets(
    weight: Weight, choice: Choice, outliers: Tensor | None, gram: GroupGram | None
) -> list[Tensor | None]:
    """Ascending rows of each dense part; None: all of them."""
    if len(choice.dense) == 1:
        return [None]
    errors = torch.stack([_row_errors(weight, part, outliers, gram) for part in choice.dense])
    free = torch.ones(weight.shape[0], dtype=torch.bool, device=weight.device)
    sets: list[Tensor | None] = []
    for place, count in enumerate(choice.row_counts(weight.shape[0])):
        rest = errors[place + 1 :].amax(0) if place + 1 < len(errors) else errors[place]
        gain = torch.where(free, rest - errors[place], -torch.inf)
        rows = torch.sort(gain, descending=True, stable=True).indices[:count].sort().values
        free[rows] = False
        sets.append(rows)
    return sets


def _row_errors(
    weight: Weight, format: Dense, outliers: Tensor | None, gram: GroupGram | None
) -> Float[Tensor, " out"]:
    """Squared rounding error of every row if the whole weight were stored by one format."""
    if format.grid.axis == "out":  # its groups are made of the rows it gets: judge rows by themselves
        format = replace(format, grid=replace(format.grid, axis="in", group=None))
    part = FittedPart.of(weight, format, None, outliers, gram)
    errors = []
    for rows, tile in tiles(weight, None, 1):
        error = part.values(weight, rows, tile) - tile
        kept = kept_mask(tile, rows, outliers)
        errors.append((error if kept is None else error * kept).square().sum(1))
    return torch.cat(errors)
