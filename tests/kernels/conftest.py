"""Weights rounded to a choice, and what the kernels are compared with."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bitbudget.rounding import nearest
from bitbudget.storage import Choice, StoredWeight

Rounded = Callable[..., StoredWeight]


@pytest.fixture(scope="session")
def rounded() -> Rounded:
    """rounded(choice, shape, bias=False): a Gaussian weight stored by a choice, always the same."""

    def make(text: str, shape: tuple[int, int], bias: bool = False) -> StoredWeight:
        generator = torch.Generator().manual_seed(0)
        weight = nearest(torch.randn(shape, generator=generator), Choice.parse(text))
        added: Tensor | None = torch.randn(shape[0], generator=generator) if bias else None
        return StoredWeight.from_tensors(weight.choice, shape, weight.tensors(), added)

    return make
