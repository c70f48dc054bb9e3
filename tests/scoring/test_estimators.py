"""Estimators against hand-computed values; the composite against planted truths."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from bitbudget.scoring import ESTIMATORS, Estimate, composite
from bitbudget.scoring.estimators import row_squares, whole_squares

P = torch.tensor([[[1.0, 2.0], [-3.0, 1.0]], [[0.5, 0.5], [0.0, 0.0]]])  # two choices, two sequences, two rows
TOKENS = (4, 6)
EXPECTED = {
    "whole": [(9 + 4) / 20, 1 / 20],
    "by-row": [(1 + 4 + 9 + 1) / 20, 0.5 / 20],
    "first": [1 / 10, 1 / 10],
    "per-sample": [5 / 10, 1 / 10],
    "rows": [(1.5 + 4 + 1.5 + 1.5) / 10, (0.625 + 0.625) / 10],
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_hand_computed(name: str) -> None:
    torch.testing.assert_close(ESTIMATORS[name](P, TOKENS).score, torch.tensor(EXPECTED[name], dtype=torch.float64))


@pytest.mark.parametrize(("name", "power"), [("whole", 2), ("by-row", 2), ("first", 1), ("per-sample", 1)])
def test_scaling_the_loss_scales_the_scores(name: str, power: int) -> None:
    torch.testing.assert_close(ESTIMATORS[name](3 * P, TOKENS).score, 3**power * ESTIMATORS[name](P, TOKENS).score)


def planted(layers: int, sequences: int, shared: float, seed: int = 0) -> tuple[Tensor, Tensor, list[int]]:
    """p of [layers, sequences, rows] with a common part of rows, and the true ½ E[(Σ p)²]; losses spread over 1e-4 … 1."""
    generator = torch.Generator().manual_seed(seed)
    rows = 100
    spread = torch.logspace(-4, 0, layers, dtype=torch.float64)
    # cross terms: each layer's rows go together, or against each other, by an amount of its own
    together = shared * torch.randn(layers, generator=generator, dtype=torch.float64).abs()
    own = torch.randn(layers, sequences, rows, generator=generator, dtype=torch.float64)
    common = torch.randn(layers, sequences, 1, generator=generator, dtype=torch.float64)
    p = (own + together[:, None, None] * common / rows**0.5) * (spread / rows).sqrt()[:, None, None]
    truth = spread / 2 * (1 + together**2)
    return p, truth, [1] * sequences


def joined(p: Tensor, tokens: Sequence[int]) -> Estimate:
    return composite(whole_squares(p), row_squares(p), tokens)


@pytest.mark.parametrize(("shared", "sequences"), [(0.0, 16), (0.3, 16), (1.5, 16), (1.5, 512)])
def test_the_composite_is_no_worse_than_either_part(shared: float, sequences: int) -> None:
    p, truth, tokens = planted(120, sequences, shared)
    # the value of one token a sequence, as the estimators divide by tokens
    whole, by_row = (ESTIMATORS[name](p, tokens) for name in ("whole", "by-row"))
    found = joined(p, tokens)
    errors = {
        name: float((score / truth).log().std())
        for name, score in (("whole", whole.score), ("by-row", by_row.score), ("composite", found.score))
    }
    assert errors["composite"] <= 1.1 * min(errors["whole"], errors["by-row"]) + 0.02, errors
    if shared == 0:
        assert errors["composite"] < 0.3 * errors["whole"]
    assert bool((found.se >= 0).all()) and bool(torch.isfinite(found.score).all())


def test_what_all_rows_do_together_is_seen() -> None:
    p, _, tokens = planted(200, 16, 0.0)
    drift = torch.randn(200, 16, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).abs()
    systematic = p + p.std((1, 2), keepdim=True) * 0.1 * drift
    whole, by_row = (ESTIMATORS[name](systematic, tokens) for name in ("whole", "by-row"))
    ratio = float((whole.score / by_row.score).mean())
    assert ratio > 1.5
    assert float((joined(systematic, tokens).score / by_row.score).mean()) > 1 + 0.6 * (ratio - 1)


def test_nothing_measured_is_nothing_lost() -> None:
    found = joined(torch.zeros(3, 4, 5), [2] * 4)
    assert found.score.tolist() == [0.0] * 3
    one = ESTIMATORS["whole"](P[:, :1], (4,))
    assert one.se.tolist() == [0.0, 0.0]


def test_without_cross_terms_the_composite_is_by_row() -> None:
    """Rows that a sequence touches one at a time: (Σ p)² = Σ p², so both estimates are the same."""
    generator = torch.Generator().manual_seed(3)
    p = torch.zeros(30, 8, 8)
    p[:, torch.arange(8), torch.arange(8)] = torch.randn(30, 8, generator=generator)
    whole, by_row = (ESTIMATORS[name](p, [5] * 8) for name in ("whole", "by-row"))
    found = joined(p, [5] * 8)
    torch.testing.assert_close(whole.score, by_row.score)
    torch.testing.assert_close(found.score, by_row.score)


def test_many_sequences_give_the_truth() -> None:
    p, truth, tokens = planted(60, 4096, 2.0)
    whole, by_row = (ESTIMATORS[name](p, tokens) for name in ("whole", "by-row"))
    found = joined(p, tokens)
    assert float((found.score / truth - 1).abs().mean()) < 0.05
    assert float((by_row.score / truth - 1).abs().mean()) > 0.3


def test_one_sequence_is_taken_by_row() -> None:
    p, _, tokens = planted(20, 1, 0.5)
    found = joined(p, tokens)
    torch.testing.assert_close(found.score, ESTIMATORS["by-row"](p, tokens).score)
    assert bool(torch.isfinite(found.se).all())


def test_choices_that_lose_nothing_stay_at_nothing() -> None:
    p, truth, tokens = planted(20, 16, 0.5)
    p[::4] = 0
    whole, by_row = (ESTIMATORS[name](p, tokens) for name in ("whole", "by-row"))
    found = joined(p, tokens)
    assert found.score[::4].tolist() == [0.0] * 5 and found.se[::4].tolist() == [0.0] * 5
    kept = [number for number in range(20) if number % 4]
    alone = joined(p[kept], tokens)
    torch.testing.assert_close(found.score[kept], alone.score)
    assert bool((found.score[kept] > 0).all())


@pytest.mark.parametrize("factor", [0.01, 7.0])
def test_scaling_the_loss_scales_the_composite_by_its_square(factor: float) -> None:
    p, _, tokens = planted(40, 16, 1.0)
    plain, scaled = (
        joined(values, tokens)
        for values in (p, factor * p)
    )
    torch.testing.assert_close(scaled.score, factor**2 * plain.score)


def test_standard_errors_are_those_of_many_repetitions() -> None:
    """Of the ratio Σ values / Σ tokens, sequences being drawn anew."""
    generator = torch.Generator().manual_seed(8)
    tokens = [7, 3, 9, 5] * 8
    p = torch.randn(3000, len(tokens), 1, generator=generator) * torch.tensor(tokens).sqrt()[None, :, None]
    found = ESTIMATORS["whole"](p, tokens)
    assert float(found.se.square().mean().sqrt()) == pytest.approx(float(found.score.std()), rel=0.1)
