"""The default score: two estimates of the same Fisher loss, weighted by what each is worth.

    whole    F = 1/(2T) Σ_d (Σ_r p_dr)²      unbiased, but one square a sequence: relative variance about 2/D for D sequences
    by row   R = 1/(2T) Σ_d Σ_r p_dr²        many squares a sequence, so little noise, but without the cross terms of rows

Rounding errors of different rows are nearly independent with mean zero, so the cross terms have expectation zero and R is what F
would be on average over roundings. What they really are is part of the loss: ρ = F/R varies around a mean r (per choice: clipping
shrinks all rows alike) with variance τ² from layer to layer, and F shows it under its noise σ². Both are estimated from all
layers together, and

    score = R · (r + w (ρ − r)),      w = τ² / (τ² + σ²),      τ² + σ² = mean (ρ − r)²,      σ² = mean se(ρ)²,

the composite estimator of Fay and Herriot (J. Am. Stat. Assoc. 74, 1979). With many sequences w goes to 1 and the score to F.
Both are means, of quantities in the same unit: whatever the tails of F, mean (ρ − r)² − mean se(ρ)² is τ² on average. A median in
place of one of them takes heavy tails of the noise for differences of layers.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bitbudget.scoring.estimators import Estimate

Values = Float[Tensor, " n"]


def composite(whole: Estimate, by_row: Estimate, choices: Sequence[str]) -> Estimate:
    """Scores of n (layer, choice) pairs of one model; `choices` says which of them share a choice."""
    usable = (by_row.score > 0) & (whole.score > 0)
    ratio = torch.where(usable, whole.score / by_row.score.clamp(min=torch.finfo(torch.float64).tiny), 1.0)
    if not bool(usable.any()):
        return whole
    names = {choice: number for number, choice in enumerate(dict.fromkeys(choices))}
    group = torch.tensor([names[choice] for choice in choices])
    mean = _shrunk_means(ratio, usable, group, len(names))
    # One variance for all pairs: a pair's own is as noisy as its value.
    noise = (whole.se[usable] / by_row.score[usable]).square().mean()
    spread = ((ratio - mean)[usable].square().mean() - noise).clamp(min=0)
    weight = spread / (spread + noise) if noise > 0 else torch.tensor(1.0)
    score = by_row.score * (mean + weight * (ratio - mean))
    relative = by_row.se / by_row.score.clamp(min=torch.finfo(torch.float64).tiny)
    error = (relative.square() + weight.square() * noise + (1 - weight).square() * spread).sqrt() * score
    return Estimate(torch.where(usable, score, whole.score), torch.where(usable, error, whole.se))


def _shrunk_means(ratio: Values, usable: Tensor, group: Int64[Tensor, " n"], groups: int) -> Values:
    """Mean ratio of every pair's group, drawn to 1 as far as noise alone could explain its distance from 1."""
    means = torch.ones(groups, dtype=ratio.dtype)
    for number in range(groups):
        own = ratio[usable & (group == number)]
        if len(own) > 1 and own.mean() != 1:
            away = own.mean() - 1
            certain = (1 - own.var() / len(own) / away.square()).clamp(min=0)
            means[number] = 1 + certain * away
    return means[group]
