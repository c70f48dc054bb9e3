"""p_d by tiles against the plain product, and the identity it rests on."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from bitbudget.scoring import contract, contract_rows
from bitbudget.scoring import contraction as module


@dataclass(frozen=True)
class Errors:
    whole: Tensor

    def error(self, rows: slice) -> Tensor:
        return self.whole[rows]


@dataclass(frozen=True)
class XandG:
    inputs: Tensor
    gradients: Tensor


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tile", [1, 100, 2**23])
def test_equals_the_plain_product(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitbudget.scoring.contraction.TILE_WEIGHTS", tile)
    assert tile == module.TILE_WEIGHTS
    errors = [Errors(random(12, 20, seed=choice)) for choice in range(3)]
    factors = [XandG(random(30, 20, seed=10 + d), random(30, 12, seed=20 + d)) for d in range(2)]
    found = contract(errors, factors, (12, 20))
    for choice, error in enumerate(errors):
        for d, own in enumerate(factors):
            gradient = own.gradients.T @ own.inputs
            torch.testing.assert_close(found[choice, d], (gradient * error.whole).sum(1), rtol=1e-4, atol=1e-3)
            # <GᵀX, Δ> = Σ G∘(XΔᵀ)
            other = (own.gradients * (own.inputs @ error.whole.T)).sum()
            torch.testing.assert_close(found[choice, d].sum(), other, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("tile", [1, 2**23])
def test_rows_of_an_embedding(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitbudget.scoring.contraction.TILE_WEIGHTS", tile)
    errors = [Errors(random(9, 5, seed=choice)) for choice in range(2)]
    ids = [torch.tensor([0, 4, 8]), torch.tensor([2])]
    rows = [random(3, 5, seed=7), random(1, 5, seed=8)]
    found = contract_rows(errors, list(zip(ids, rows, strict=True)), (9, 5))
    for choice, error in enumerate(errors):
        for d in range(2):
            expected = torch.zeros(9)
            expected[ids[d]] = (rows[d] * error.whole[ids[d]]).sum(1)
            torch.testing.assert_close(found[choice, d], expected)
