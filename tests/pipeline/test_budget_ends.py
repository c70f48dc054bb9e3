"""Both ends of a budget: a byte below the least is refused in the user's words, the least is met, and room for all is said."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import zoo
from bitbudget import load
from bitbudget.allocation import Point, ScoreTable, Unit
from bitbudget.errors import BudgetError, InputError
from bitbudget.methods import LlmMq
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.api import plan, quantize
from bitbudget.pipeline.budgets import DIMENSIONS, Budget, passthrough_bytes
from bitbudget.pipeline.by_budget import Options
from bitbudget.pipeline.offers import Offer, Prices, chosen, offers
from bitbudget.pipeline.solving import Question, offered, output_of, question, refuse_infeasible, richest, solved

METHOD = LlmMq(bits=(2, 4), groups=(16, 32), outliers=("0", "1%"), tables=("int4:g32",), reference="int3:g32")
BESIDE = 12_345
SHARDS = (10**9, 100_000)
KINDS = ("memory", "weights", "disk", "bits", "code_bits")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SourceModel:
    return SourceModel.open(zoo.make_model("qwen2", tmp_path_factory.mktemp("qwen2"), dtype=torch.bfloat16, text=True))


def ask(source: SourceModel, budget: Budget, shard: int = SHARDS[0]) -> tuple[Question, tuple[Offer, ...]]:
    return question(source, budget, BESIDE, shard, packed=False), offered(offers(source, METHOD.recipe()), budget)


def table_of(source: SourceModel, every: tuple[Offer, ...]) -> ScoreTable:
    """Scores that fall with bytes, each layer at a pace of its own."""
    prices, units = Prices.of(source, packed=False), []
    for number, offer in enumerate(every):
        most = max(planned.nbytes for planned in offer.planned)
        points = tuple(
            Point({offer.layer.name: str(one.choice)}, prices.costs(one), (1 + number % 5) * (most - one.nbytes) / most, 0.0)
            for one in offer.planned
        )
        units.append(Unit(offer.layer.name, points))
    return ScoreTable(DIMENSIONS, tuple(units), {})


def least_named(source: SourceModel, kind: str, shard: int = SHARDS[0]) -> float:
    """What the refusal of a tiny budget says is the least."""
    tiny = 0.5 if kind in ("bits", "code_bits") else 10
    asked, every = ask(source, Budget(**{kind: tiny}), shard)
    with pytest.raises(BudgetError) as caught:
        refuse_infeasible(source, every, asked)
    text = str(caught.value)
    word = kind.replace("_", "-")
    amount = "0.5" if kind in ("bits", "code_bits") else "10 bytes"
    found = re.match(rf"--{word} {re.escape(amount)} cannot be met: at least ([0-9,.]+) (bytes|bits a weight)", text)
    assert found, text
    if kind == "memory":
        assert f"{BESIDE:,}" in text and f"{passthrough_bytes(source):,}" in text and "--context" in text
    return float(found[1].rstrip(".").replace(",", ""))


def test_a_small_signed_sum_does_not_buy_fewer_bits(source: SourceModel) -> None:
    """Every layer's narrowest choice seems to lose nothing: the solver believes it only where the recipe says so."""
    asked, every = ask(source, Budget(weights=10**9))
    fair = table_of(source, every)
    units = []
    for unit in fair.units:
        cheapest = min(unit.points, key=lambda point: point.cost)
        points = (replace(one, score=0.0 if one is cheapest else one.score + 1) for one in unit.points)
        units.append(replace(unit, points=tuple(points)))
    table = replace(fair, units=tuple(units))
    kept, raised = (solved(table, replace(asked, order=order), source, every) for order in ("keep", "raise"))
    assert kept.costs["bytes"] == sum(min(point.cost for point in unit.points)[0] for unit in units)
    assert raised.costs["bytes"] > kept.costs["bytes"]


@pytest.mark.parametrize("shard", SHARDS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_least_that_is_named_is_met_and_no_less(source: SourceModel, kind: str, shard: int) -> None:
    least = least_named(source, kind, shard)
    step = 0.001 if kind in ("bits", "code_bits") else 1
    amount = least if kind in ("bits", "code_bits") else int(least)
    asked, every = ask(source, Budget(**{kind: amount}), shard)
    refuse_infeasible(source, every, asked)
    found = solved(table_of(source, every), asked, source, every)
    made = output_of(source, chosen(every, found.layers), shard, {})
    spent = {
        "memory": made.weights_bytes + BESIDE, "weights": made.weights_bytes, "disk": made.disk_bytes,
        "bits": made.stored_bits, "code_bits": made.code_bits,
    }[kind]  # fmt: skip
    assert spent <= amount + 1e-9 and spent > amount - 2 * step
    below, every = ask(source, Budget(**{kind: amount - step}), shard)
    with pytest.raises(BudgetError, match=f"--{kind.replace('_', '-')} .* cannot be met"):
        refuse_infeasible(source, every, below)


@pytest.mark.parametrize("shard", SHARDS)
@pytest.mark.parametrize("kind", ["weights", "disk", "memory"])
def test_room_for_all_begins_at_the_byte(source: SourceModel, kind: str, shard: int) -> None:
    _, every = ask(source, Budget(weights=1))
    layers = [max(offer.planned, key=lambda planned: planned.nbytes) for offer in every]
    made = output_of(source, layers, shard, {})
    most = {"weights": made.weights_bytes, "disk": made.disk_bytes, "memory": made.weights_bytes + BESIDE}[kind]
    for amount, fits in ((most, True), (most - 1, False)):
        asked, every = ask(source, Budget(**{kind: amount}), shard)
        assert (richest(source, every, asked) is not None) is fits


@pytest.mark.parametrize("shard", SHARDS)
def test_files_of_many_shards_stay_within_the_disk(source: SourceModel, shard: int) -> None:
    _, every = ask(source, Budget(disk=1))
    table = table_of(source, every)
    ends = [
        output_of(source, [pick(offer.planned, key=lambda one: one.nbytes) for offer in every], shard, {}).disk_bytes
        for pick in (min, max)
    ]
    for part in range(1, 20):
        amount = ends[0] + (ends[1] - ends[0]) * part // 20
        asked, _ = ask(source, Budget(disk=amount), shard)
        found = solved(table, asked, source, every)
        assert output_of(source, chosen(every, found.layers), shard, {}).disk_bytes <= amount


def test_budgets_that_only_together_cannot_be_met(source: SourceModel) -> None:
    least = int(least_named(source, "weights"))
    budget = Budget(weights=least + 1000, code_bits=16.0)  # embedding and head then stay as they are
    asked, every = ask(source, budget)
    with pytest.raises(BudgetError, match="--weights [0-9,]+ bytes cannot be met"):
        refuse_infeasible(source, every, asked)


def test_nothing_is_measured_for_a_budget_below_the_least(source: SourceModel, tmp_path: Path) -> None:
    options = Options(METHOD, cache=tmp_path / "cache")
    for kind in KINDS:
        budget = Budget(**{kind: 0.5 if kind in ("bits", "code_bits") else 10})
        with pytest.raises(BudgetError, match="at least"):
            quantize(source.folder, budget, tmp_path / "out", options=options, device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_room_for_the_model_as_it_is(source: SourceModel, tmp_path: Path) -> None:
    """A plan says so; there is nothing to quantize, and quantize says that."""
    options = Options(LlmMq(bits=(2, 16), groups=(32,), outliers=("0",), tables=()), cache=tmp_path / "cache")
    found = plan(source.folder, Budget(weights=10**9), options=options, device="cpu")
    assert not found.output.stored_choices and found.guard is None
    assert any("nothing was calibrated" in note for note in found.plan.notes)
    for how in (Budget(weights=10**9), found.plan):
        with pytest.raises(InputError, match="nothing would be quantized"):
            quantize(source.folder, how, tmp_path / "out", options=options, device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_room_for_the_largest_choice_makes_a_model_that_loads(source: SourceModel, tmp_path: Path) -> None:
    options = Options(LlmMq(bits=(2, 4), groups=(32,), outliers=("0",), tables=()), cache=tmp_path / "cache")
    record = quantize(source.folder, Budget(weights=10**9), tmp_path / "out", options=options, device="cpu")
    assert record["verification"]["passed"] and "nothing was calibrated" in record["plan"]["notes"][0]
    with torch.no_grad():
        assert math.isfinite(float(load(tmp_path / "out")(torch.tensor([[5, 6, 7]])).logits.sum()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
