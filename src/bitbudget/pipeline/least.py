"""The least that a model can be made to take, in the words of each budget: what a budget below it is refused with."""

import math
from collections.abc import Sequence
from fractions import Fraction

from bitbudget.errors import BudgetError
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.budgets import (
    BYTES,
    CODE_BITS,
    DIMENSIONS,
    DISK,
    MEMORY,
    Budget,
    counted,
    option,
    passthrough_bytes,
)
from bitbudget.pipeline.offers import Offer, Prices
from bitbudget.pipeline.output import PlannedLayer, disk_bytes_of

DECIMALS = 3  # of bits that are named to a user, rounded up


def refuse_too_small(
    source: SourceModel,
    every: Sequence[Offer],
    budget: Budget,
    beside_weights: int,
    max_shard_bytes: int,
    prices: Prices,
) -> None:
    """Raise BudgetError for a budget below what all layers at their smallest take, which is named in the budget's own unit.

    beside_weights: bytes that running the model takes besides its tensors.
    """
    priced = [[(prices.costs(planned), planned) for planned in offer.planned] for offer in every]
    least, smallest = {}, {}
    for place, name in enumerate(DIMENSIONS):
        least[name], smallest[name] = _smallest(priced, place)
    layers, kept = least[BYTES], passthrough_bytes(source)
    if budget.memory is not None and budget.memory < least[MEMORY] + kept + beside_weights:
        stored = sum(planned.nbytes for planned in smallest[MEMORY])
        parts = {"layers at their smallest": stored, "packed for the kernels": least[MEMORY] - stored}
        parts |= {"tensors kept as they are": kept, "all that runs beside": beside_weights}
        raise _refusal(budget, "memory", sum(parts.values()), parts, "ask for a shorter --context")
    if budget.weights is not None and budget.weights < layers + kept:
        raise _refusal(
            budget, "weights", layers + kept, {"layers at their smallest": layers, "tensors kept as they are": kept}
        )
    if budget.disk is not None:
        disk = disk_bytes_of(source, smallest[DISK], max_shard_bytes)
        if budget.disk < disk:
            parts = {"layers at their smallest": sum(one.nbytes for one in smallest[DISK]), "tensors kept as they are": kept}
            raise _refusal(budget, "disk", disk, parts | {"names in headers": disk - sum(parts.values())})
    weights = sum(math.prod(layer.shape) for layer in source.layers)
    if budget.bits is not None and math.floor(budget.bits * weights / 8) < layers:
        raise _refusal(budget, "bits", _rounded_up(8 * layers, weights), {})
    linears = sum(math.prod(layer.shape) for layer in counted(source.layers))
    if budget.code_bits is not None and math.floor(budget.code_bits * linears) < least[CODE_BITS]:
        raise _refusal(budget, "code_bits", _rounded_up(least[CODE_BITS], linears), {})


def _smallest(
    priced: Sequence[Sequence[tuple[tuple[int, ...], PlannedLayer]]], place: int
) -> tuple[int, list[PlannedLayer]]:
    """Every layer by the choice that costs least in a dimension, and what they cost together."""
    layers = [min(choices, key=lambda choice: choice[0][place]) for choices in priced]
    return sum(costs[place] for costs, _ in layers), [planned for _, planned in layers]


def _rounded_up(bits: int, weights: int) -> float:
    return math.ceil(Fraction(bits * 10**DECIMALS, weights)) / 10**DECIMALS


def _refusal(
    budget: Budget, name: str, least: int | float, parts: dict[str, int], advice: str = "offer smaller choices with --widths"
) -> BudgetError:
    unit = "bits a weight" if name in ("bits", "code_bits") else "bytes"
    made_of = ", ".join(f"{part} {nbytes:,}" for part, nbytes in parts.items() if nbytes)
    return BudgetError(
        f"{option(name, budget)} cannot be met: at least {least:,} {unit}{f' ({made_of})' if made_of else ''}. "
        f"Raise it, or {advice}."
    )
