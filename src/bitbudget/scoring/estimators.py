"""Estimators: from p_d[choice, row] to the loss that a choice causes, in nats per token, with its standard error.

L_d is the summed loss of sequence d and T = Σ T_d the scored tokens of all sequences. a_d = Σ_rows p_d is the layer's
first-order change of L_d; the cells of a choice are always summed before anything is squared or made positive.

| name       | formula                          | source |
|------------|----------------------------------|--------|
| whole      | 1/(2T) Σ_d a_d²                  | KL to second order; with labels drawn from the model F is the Hessian of the KL |
| by-row     | 1/(2T) Σ_d Σ_row p_d²            | the same, if errors of different rows have nothing to do with each other |
| fisher     | both, weighted by their precision | `scoring/composite.py` |
| first      | |Σ_d a_d| / T                    | LLM-MQ, equation 2 |
| per-sample | Σ_d |a_d| / T                    | |
| rows       | Σ_d Σ_row |p_d + ½ p_d²| / T     | MixLLM, global salience of output features |
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Contraction = Float[Tensor, "choices sequences rows"]
PerSequence = Float[Tensor, "choices sequences"]


class Estimate(NamedTuple):
    """score: nats per token, for every choice; se: its standard error over sequences."""

    score: Float[Tensor, " choices"]
    se: Float[Tensor, " choices"]


Estimator = Callable[[Contraction, Sequence[int]], Estimate]


def whole(p: Contraction, tokens: Sequence[int]) -> Estimate:
    """½ aᵀa / T. tokens: scored in every sequence."""
    return over_sequences(whole_squares(p), tokens)


def by_row(p: Contraction, tokens: Sequence[int]) -> Estimate:
    """½ Σ_row p² / T: without what the rows' errors do together, and so with the noise of many squares instead of one."""
    return over_sequences(row_squares(p), tokens)


def whole_squares(p: Contraction) -> PerSequence:
    """½ (Σ_row p)² of every sequence."""
    return p.double().sum(-1).square() / 2


def row_squares(p: Contraction) -> PerSequence:
    """½ Σ_row p² of every sequence."""
    return p.double().square().sum(-1) / 2


def first_order(p: Contraction, tokens: Sequence[int]) -> Estimate:
    """|Σ_d a_d| / T: the absolute value of the sum over everything (LLM-MQ, equation 2)."""
    signed = over_sequences(p.double().sum(-1), tokens)
    return Estimate(signed.score.abs(), signed.se)


def per_sample(p: Contraction, tokens: Sequence[int]) -> Estimate:
    """Σ_d |a_d| / T."""
    return over_sequences(p.double().sum(-1).abs(), tokens)


def rows(p: Contraction, tokens: Sequence[int]) -> Estimate:
    """Σ_d Σ_row |p + ½ p²| / T: every output row by itself (MixLLM, global salience of output features)."""
    wide = p.double()
    return over_sequences((wide + wide.square() / 2).abs().sum(-1), tokens)


def over_sequences(values: PerSequence, tokens: Sequence[int]) -> Estimate:
    """Σ values / Σ tokens, and the linearised standard error of that ratio over sequences."""
    counts = torch.tensor(tokens, dtype=torch.float64)
    total, number = counts.sum(), len(tokens)
    mean = values.sum(-1) / total
    if number < 2:
        return Estimate(mean, torch.zeros_like(mean))
    squares = (values - mean[:, None] * counts).square().sum(-1)
    return Estimate(mean, (number / (number - 1) * squares).sqrt() / total)


ESTIMATORS: Mapping[str, Estimator] = MappingProxyType(
    {"whole": whole, "by-row": by_row, "first": first_order, "per-sample": per_sample, "rows": rows}
)
