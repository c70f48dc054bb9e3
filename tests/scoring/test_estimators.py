"""Estimators against hand-computed values; the composite against planted truths."""

import pytest
import torch
from torch import Tensor

from bitbudget.scoring import ESTIMATORS, Estimate, composite

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


@pytest.mark.parametrize(("shared", "sequences"), [(0.0, 16), (0.3, 16), (1.5, 16), (1.5, 512)])
def test_the_composite_is_no_worse_than_either_part(shared: float, sequences: int) -> None:
    p, truth, tokens = planted(120, sequences, shared)
    # the value of one token a sequence, as the estimators divide by tokens
    whole, by_row = (ESTIMATORS[name](p, tokens) for name in ("whole", "by-row"))
    found = composite(whole, by_row, ["one choice"] * len(truth))
    errors = {
        name: float((score / truth).log().std())
        for name, score in (("whole", whole.score), ("by-row", by_row.score), ("composite", found.score))
    }
    assert errors["composite"] <= 1.1 * min(errors["whole"], errors["by-row"]) + 0.02, errors
    if shared == 0:
        assert errors["composite"] < 0.3 * errors["whole"]
    assert bool((found.se >= 0).all()) and bool(torch.isfinite(found.score).all())


def test_what_one_choice_does_to_all_rows_is_seen() -> None:
    p, truth, tokens = planted(200, 16, 0.0)
    systematic = p * 1.0
    systematic += systematic.std((1, 2), keepdim=True) * 0.1 * torch.randn(200, 16, 1, dtype=torch.float64).abs()
    whole, by_row = (ESTIMATORS[name](systematic, tokens) for name in ("whole", "by-row"))
    assert float((whole.score / by_row.score).mean()) > 1.5
    found = composite(whole, by_row, ["one"] * 200)
    assert float((found.score / by_row.score).mean()) == pytest.approx(float((whole.score / by_row.score).mean()), rel=0.1)
    assert len(truth) == 200


def test_nothing_measured_is_nothing_lost() -> None:
    zero = Estimate(torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    found = composite(zero, zero, ["a", "b", "a"])
    assert found.score.tolist() == [0.0] * 3
    one = ESTIMATORS["whole"](P[:, :1], (4,))
    assert one.se.tolist() == [0.0, 0.0]
