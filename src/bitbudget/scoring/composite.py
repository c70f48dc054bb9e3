"""The default score: two estimates of the same Fisher loss, weighted by what each is worth.

    whole    F = 1/(2T) Σ_d (Σ_r p_dr)²      unbiased, but one square a sequence: relative variance about 2/D for D sequences
    by row   R = 1/(2T) Σ_d Σ_r p_dr²        many squares a sequence, so little noise, but without the cross terms of rows

Rounding errors of different rows are nearly independent with mean zero, so the cross terms have expectation zero and R is what F
would be on average over roundings. What they really are is part of the loss: ρ = F/R varies around 1 from layer to layer with
variance τ², and F shows it under its noise σ². Both are estimated from all layers together, and

    score = R · (1 + w (ρ − 1)),      w = τ² / (τ² + σ²),      τ² + σ² = mean (ρ − 1)²,      σ² = mean se(ρ)²,

the composite estimator of Fay and Herriot (J. Am. Stat. Assoc. 74, 1979). With many sequences w goes to 1 and the score to F.
Both are means, of quantities in the same unit: whatever the tails of F, mean (ρ − 1)² − mean se(ρ)² is τ² on average. A median in
place of one of them takes heavy tails of the noise for differences of layers. A mean ratio of each choice in place of 1 was tried:
from 16 sequences it is mostly noise that all layers share, and predictions got worse.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from bitbudget.scoring.estimators import Estimate, PerSequence, over_sequences

TINY = torch.finfo(torch.float64).tiny


def composite(whole: PerSequence, by_row: PerSequence, tokens: Sequence[int]) -> Estimate:
    """Scores of (layer, choice) pairs of one model, with standard errors over sequences.

    whole, by_row: ½ (Σ p)² and ½ Σ p² [pairs, sequences]; tokens: scored in every sequence.
    """
    rows = over_sequences(by_row, tokens)
    usable = (by_row.sum(-1) > 0) & (whole.sum(-1) > 0)
    if len(tokens) < 2 or not bool(usable.any()):
        return rows  # one square says nothing of its own noise
    totals = by_row.sum(-1, keepdim=True).clamp(min=TINY)
    away = (whole.sum(-1) - by_row.sum(-1)) / totals[:, 0]
    # One variance for all pairs: a pair's own is as noisy as its value.
    noise = _variance(whole / totals, by_row / totals)[usable].mean()
    spread = (away[usable].square().mean() - noise).clamp(min=0)
    weight = spread / (spread + noise) if noise > 0 else torch.tensor(1.0)
    score = rows.score * (1 + weight * away)
    variance = (rows.se / rows.score.clamp(min=TINY)).square() + weight.square() * noise + (1 - weight).square() * spread
    return Estimate(torch.where(usable, score, rows.score), torch.where(usable, variance.sqrt() * score, rows.se))


def _variance(above: PerSequence, below: PerSequence) -> Float[Tensor, " choices"]:
    """Of Σ above, as an estimate of the ratio of two totals over sequences; Σ below is 1 (linearised)."""
    number = above.shape[-1]
    return number / (number - 1) * (above - above.sum(-1, keepdim=True) * below).square().sum(-1)
