"""Layers as bitbudget.json lists them, and the text that is drawn of them."""

from collections.abc import Callable, Mapping
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from bitbudget.report.bits import show_bits
from bitbudget.storage import Choice

Layers = dict[str, dict[str, Any]]


def entry(choice: str, block: int | None, shape: tuple[int, int] = (256, 128), known: bool = True) -> dict[str, Any]:
    """A layer's entry; without shape and bytes where they are not known, as in a plan."""
    found: dict[str, Any] = {"choice": choice, "block": block}
    if known:
        kept = {"bf16": 2, "fp16": 2, "fp32": 4}.get(choice)
        nbytes = kept * shape[0] * shape[1] if kept else Choice.parse(choice).nbytes(shape)
        found |= {"shape": list(shape), "bytes": nbytes}
    return found


@pytest.fixture
def make_layers() -> Callable[..., Layers]:
    """make_layers(rows, outside, known=True): rows[block][linear] and outside[name] are choices."""

    def make(rows: list[Mapping[str, str]], outside: Mapping[str, str] | None = None, known: bool = True) -> Layers:
        layers = {name: entry(choice, None, known=known) for name, choice in (outside or {}).items()}
        for block, row in enumerate(rows):
            for name, choice in row.items():
                layers[f"model.layers.{block}.{name}"] = entry(choice, block, known=known)
        return layers

    return make


@pytest.fixture
def mixed(make_layers) -> Layers:
    """Two blocks alike, one of its own, embedding and head."""
    linears = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj")
    usual = dict.fromkeys(linears, "int3:g128")
    other = dict(zip(linears, ("int8:g128*10%|int4:g128", "int4:g64", "int3:g128+outliers:0.5%", "bf16"), strict=True))
    return make_layers([usual, usual, other], {"model.embed_tokens": "int4:g128:scale=bf16", "lm_head": "int6:g128"})


@pytest.fixture
def drawn() -> Callable[..., list[str]]:
    """drawn(layers, width=80): the lines that are printed to a file."""

    def draw(layers: Layers, width: int = 80) -> list[str]:
        file = StringIO()
        show_bits(Console(file=file, width=width, markup=False, highlight=False, emoji=False), layers)
        return file.getvalue().splitlines()

    return draw
