"""The proof on blocks made by hand: what is wrong is turned down, whatever its shapes promise."""

import pytest
import torch
from torch import Tensor, nn

from bitbudget.models.recording import HIDDEN, Call
from bitbudget.transforms.proof import Change, DoubleBlock
from bitbudget.transforms.proposals import Pair, Proposals, Search

WIDTH, HEADS, KEY_HEADS = 32, 4, 2


class Block(nn.Module):
    """norm → feed-forward → residual, with what a test wants to be different."""

    def __init__(self, activation=nn.functional.gelu, gated: bool = False) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.gate = nn.Linear(WIDTH, 2 * WIDTH) if gated else None
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        self.activation = activation

    def feed(self, hidden: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.activation(self.up(hidden)))
        return self.down(self.activation(self.gate(hidden)) * self.up(hidden))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.feed(self.norm(hidden))


class PostNorm(Block):
    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.norm(hidden)
        return hidden + self.feed(hidden)


class Routed(Block):
    """Its router is a parameter of the block itself, so no module of its own reads the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Parameter(torch.randn(1, WIDTH))

    def forward(self, hidden: Tensor) -> Tensor:
        normed = self.norm(hidden)
        return hidden + nn.functional.linear(normed, self.router).sigmoid() * self.feed(normed)


class Listening(Block):
    """A module that is no layer reads the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.listener = nn.RMSNorm(WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        normed = self.norm(hidden)
        return hidden + self.feed(normed) + self.listener(normed)


class OnePlusNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.3 * torch.randn(WIDTH))
        self.bias = nn.Parameter(torch.randn(WIDTH))

    def forward(self, hidden: Tensor) -> Tensor:
        return nn.functional.layer_norm(hidden.float(), (WIDTH,), 1 + self.weight.float(), self.bias.float()).to(hidden)


class Attention(nn.Module):
    """Grouped attention; `repeated` says how value heads are copied to the query heads."""

    def __init__(self, repeated) -> None:
        super().__init__()
        self.repeated = repeated
        size = WIDTH // HEADS
        self.q, self.o = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.k, self.v = nn.Linear(WIDTH, size * KEY_HEADS), nn.Linear(WIDTH, size * KEY_HEADS)

    def forward(self, hidden: Tensor) -> Tensor:
        q, k, v = (
            x.unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2)
            for x in (self.q(hidden), self.k(hidden), self.v(hidden))
        )
        mixed = nn.functional.scaled_dot_product_attention(q, self.repeated(k), self.repeated(v), is_causal=True)
        return hidden + self.o(mixed.transpose(1, 2).flatten(2))


def double(block: nn.Module, tokens: int = 9) -> DoubleBlock:
    generator = torch.Generator().manual_seed(0)
    for parameter in block.parameters():
        parameter.requires_grad_(False)
    return DoubleBlock(
        block.eval(), Call((HIDDEN,), {}), torch.randn(1, tokens, WIDTH, generator=generator, dtype=torch.float64)
    )


def search(block: nn.Module) -> Proposals:
    modules = [(path, module) for path, module in block.named_modules() if list(module.parameters(recurse=False))]
    linears = frozenset(path for path, module in modules if isinstance(module, nn.Linear))
    return Search(
        double(block), linears, frozenset(path for path, _ in modules), torch.Generator().manual_seed(1)
    ).found()


def found(proposals: Proposals) -> dict[str, tuple[str, ...]]:
    return {pair.producer: pair.consumers for pair in proposals.pairs}


def reasons(proposals: Proposals) -> dict[str, str]:
    return {path: reason for paths, reason in proposals.unscaled for path in paths}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_up_is_no_producer_through_gelu_but_through_relu():
    smooth = search(Block())
    assert found(smooth) == {"norm": ("up",)}
    assert "tried up" in reasons(smooth)["down"]
    assert found(search(Block(nn.functional.relu))) == {"norm": ("up",), "up": ("down",)}


def test_up_and_not_gate_is_the_producer_of_down():
    assert found(search(Block(nn.functional.silu, gated=True))) == {"norm": ("gate", "up"), "up": ("down",)}


@pytest.mark.parametrize("kind", [PostNorm, Routed])
def test_a_norm_that_is_used_elsewhere_is_turned_down(kind):
    proposals = search(kind())
    assert found(proposals) == {} and "used elsewhere" in reasons(proposals)["up"]


def test_another_reader_of_the_input_is_named():
    proposals = search(Listening())
    assert found(proposals) == {} and reasons(proposals)["up"].startswith("listener")


def test_one_plus_a_gain_beside_a_bias_is_turned_down():
    block = Block()
    block.norm = OnePlusNorm()
    assert "1 + weight beside a bias" in reasons(search(block))["up"]


def test_a_linear_that_is_never_called_is_listed():
    block = Block()
    block.spare = nn.Linear(WIDTH, WIDTH)
    assert "not call" in reasons(search(block))["spare"]


def test_values_find_their_columns_whatever_the_order_of_copies():
    size = WIDTH // HEADS
    together, around = (torch.arange(size * KEY_HEADS).view(KEY_HEADS, size) for _ in range(2))
    for repeated, columns in (
        (lambda x: x.repeat_interleave(2, 1), together.repeat_interleave(2, 0)),
        (lambda x: x.repeat(1, 2, 1, 1), around.repeat(2, 1)),
    ):
        (pair,) = search(Attention(repeated)).pairs
        assert (pair.producer, pair.consumers, pair.columns) == ("v", ("o",), tuple(columns.flatten().tolist()))


def agrees(block: DoubleBlock, pair: Pair) -> bool:
    return block.agrees(pair.changes(block.block, torch.Generator().manual_seed(2)))


def test_wrong_pairs_do_not_pass_the_proof():
    block = double(Attention(lambda x: x.repeat_interleave(2, 1)))
    size = WIDTH // HEADS
    right = tuple(torch.arange(2 * size).view(2, size).repeat_interleave(2, 0).flatten().tolist())
    wrong = tuple(torch.arange(2 * size).repeat(2).tolist())
    assert agrees(block, Pair("linear", "v", ("o",), 2 * size, columns=right))
    assert not agrees(block, Pair("linear", "v", ("o",), 2 * size, columns=wrong))
    assert not agrees(block, Pair("linear", "q", ("o",), WIDTH))
    assert not agrees(block, Pair("linear", "k", ("o",), 2 * size, columns=right))
    gated = double(Block(nn.functional.silu, gated=True))
    assert agrees(gated, Pair("linear", "up", ("down",), 2 * WIDTH))
    assert not agrees(gated, Pair("linear", "gate", ("down",), 2 * WIDTH))
    assert not agrees(gated, Pair("norm", "norm", ("up",), WIDTH))  # gate reads it too
    assert not agrees(gated, Pair("norm", "norm", ("gate", "up"), WIDTH, one_plus=True))


def test_nothing_passes_where_the_output_is_not_finite():
    block = Block()
    with torch.no_grad():
        block.down.bias[0] = torch.nan
    proposals = search(block)
    assert proposals.pairs == () and "not finite" in reasons(proposals)["up"]


def test_a_silent_column_follows_its_neighbours():
    block = Block(nn.functional.relu)
    with torch.no_grad():
        block.up.bias[3] = -1e6
    assert found(search(block)) == {"norm": ("up",), "up": ("down",)}


def test_changes_of_one_module_join():
    rows, columns = torch.full((2,), 2.0).double(), torch.full((3,), 5.0).double()
    joined = Change(rows=rows).joined(Change(columns=columns))
    assert torch.equal(joined.apply("weight", torch.ones(2, 3).double(), False), torch.full((2, 3), 10.0).double())
    assert torch.equal(joined.apply("weight", torch.ones(3, 2).double(), True), torch.full((3, 2), 10.0).double())
    assert torch.equal(joined.apply("bias", torch.ones(2).double(), False), rows)
