"""From a budget to a finished folder on a small model: what is promised in bytes is kept, whatever the kind of budget."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import zoo
from bitbudget.errors import BudgetError, InputError
from bitbudget.methods import LlmMq
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.api import plan, quantize
from bitbudget.pipeline.budgets import BYTES, CODE_BITS, DISK, MEMORY, Budget, counted, passthrough_bytes
from bitbudget.pipeline.by_budget import Options
from bitbudget.pipeline.effort import Effort
from bitbudget.pipeline.offers import Prices, chosen, packing
from bitbudget.pipeline.output import PlannedLayer
from bitbudget.pipeline.planning import Planner, Settings
from bitbudget.pipeline.progress import Run, Silent
from bitbudget.pipeline.solving import offered, output_of, question, restricted, solved
from bitbudget.pipeline.table import Measured

METHOD = LlmMq(groups=(16, 32), outliers=("0", "1%"), tables=("int4:g32", "int8:g32"), reference="int3:g32")
SHARD = 10**9
BESIDE = 54_321  # bytes that running takes besides the tensors


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.make_model("llama", tmp_path_factory.mktemp("llama"), dtype=torch.bfloat16, text=True)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def planner(model: Path, cache: Path) -> Planner:
    settings = Settings(METHOD.recipe(), Effort("few", first=6, most=6), cache=cache)
    return Planner(SourceModel.open(model), settings, Run("cpu"))


@pytest.fixture(scope="module")
def measured(planner: Planner) -> Measured:
    return planner.measured(6)


def reachable(planner: Planner, kind: str, packed: bool = False) -> tuple[float, float]:
    """Least and largest amount of a kind of budget."""
    source, prices = planner.source, Prices.of(planner.source, packed)
    ends = []
    for pick in (min, max):
        every = offered(planner.offers, Budget(code_bits=1.0) if kind == "code_bits" else Budget(bits=1.0))
        layers = [pick(offer.planned, key=prices.costs) for offer in every]
        made = output_of(source, layers, SHARD, {})
        weights = sum(math.prod(layer.shape) for layer in counted(source.layers))
        code = sum(prices.cost(planned, CODE_BITS) for planned in layers)
        amounts = {
            "weights": made.weights_bytes, "disk": made.disk_bytes, "bits": made.stored_bits, "code_bits": code / weights,
            "memory": made.weights_bytes + BESIDE + packing_of(layers, packed),
        }  # fmt: skip
        ends.append(amounts[kind])
    return ends[0], ends[1]


def packing_of(layers: Sequence[PlannedLayer], packed: bool) -> int:
    return packing({planned.layer: planned.choice for planned in layers}) if packed else 0


@pytest.mark.parametrize("kind", ["memory", "memory, packed", "weights", "disk", "bits", "code_bits"])
def test_fifty_budgets_are_kept_and_used(kind: str, planner: Planner, measured: Measured) -> None:
    generator, packed = random.Random(kind), "packed" in kind
    kind = kind.partition(",")[0]
    least, most = reachable(planner, kind, packed)
    source, prices = planner.source, Prices.of(planner.source, packed)
    table = measured.table(prices, planner.offers, {})
    for _ in range(50):
        amount = least + (most - least) * generator.random()
        amount = amount if kind in ("bits", "code_bits") else math.ceil(amount + 300)
        asked = question(source, Budget(**{kind: amount}), BESIDE, SHARD, packed=packed)
        every = offered(planner.offers, asked.budget)
        found = solved(restricted(table, every), asked, source, every)
        layers = chosen(planner.offers, found.layers)
        made = output_of(source, layers, SHARD, {})
        weights = sum(math.prod(layer.shape) for layer in counted(source.layers))
        spent = {
            "weights": made.weights_bytes, "disk": made.disk_bytes, "bits": made.stored_bits,
            "code_bits": found.costs[CODE_BITS] / weights, "memory": made.weights_bytes + BESIDE + packing_of(layers, packed),
        }[kind]  # fmt: skip
        assert spent <= amount
        dimension = {"disk": DISK, "code_bits": CODE_BITS, "memory": MEMORY}.get(kind, BYTES)
        own = {planned.layer.name: planned for planned in layers}
        scores = {(unit.name, point.label): point.score for unit in table.units for point in unit.points}
        upgrades = [
            prices.cost(planned, dimension) - prices.cost(own[offer.layer.name], dimension)
            for offer in every
            for planned in offer.planned
            if scores[offer.layer.name, str(planned.choice)]
            < scores[offer.layer.name, str(own[offer.layer.name].choice)]
        ]
        unit = {"bits": sum(math.prod(layer.shape) for layer in source.layers) / 8, "code_bits": weights}.get(kind, 1)
        assert (amount - spent) * unit < min(upgrades, default=math.inf) + 64 * (kind == "disk")


def test_written_files_have_the_promised_bytes(model: Path, cache: Path, planner: Planner, tmp_path: Path) -> None:
    kind = "disk"
    least, most = reachable(planner, kind)
    amount = int(least + (most - least) / 3)
    options = Options(method=METHOD, effort="fast", cache=cache)
    record = quantize(model, Budget(**{kind: amount}), tmp_path / "out", options=options, device="cpu")
    files = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == record["output"]["disk_bytes"]
    assert files <= amount
    assert record["verification"]["passed"]
    names = [one["name"] for one in record["guard"]["candidates"]]
    assert names[0] == "plan" and any(name.startswith("uniform") for name in names)
    kl = {one["name"]: one["kl"] for one in record["guard"]["candidates"]}
    assert kl[record["guard"]["winner"]] == min(kl.values())
    assert record["plan"]["layers"] == {name: entry["choice"] for name, entry in record["output"]["layers"].items()}
    again = plan(model, Budget(**{kind: amount}), options=options, device="cpu")
    again.plan.save(tmp_path / "plan.json")
    quantize(model, tmp_path / "plan.json", tmp_path / "again", device="cpu", options=Options(cache=cache))
    for path in (tmp_path / "out").iterdir():
        if path.name != "bitbudget.json":  # one says that a budget was asked for, the other a plan
            assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_a_budget_out_of_reach_is_refused_before_anything_is_measured(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="cannot be met"):
        plan(model, Budget(bits=1.5), options=Options(method=METHOD, cache=tmp_path), device="cpu")
    with pytest.raises(BudgetError, match="--weights 10 bytes cannot be met: at least"):
        plan(model, Budget(weights=10), options=Options(method=METHOD, cache=tmp_path), device="cpu")
    with pytest.raises(InputError, match="makes no sense"):
        plan(model, Budget(bits=-1.0), options=Options(method=METHOD, cache=tmp_path), device="cpu")
    with pytest.raises(InputError, match="No budget"):
        plan(model, Budget(), options=Options(method=METHOD, cache=tmp_path), device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_a_budget_with_room_for_everything_measures_nothing(model: Path, tmp_path: Path) -> None:
    narrow = LlmMq(bits=(2, 4), groups=(32,), outliers=("0",), tables=())
    found = plan(model, Budget(weights=10**9), options=Options(method=narrow, cache=tmp_path), device="cpu")
    assert found.guard is None and "nothing was calibrated" in found.plan.notes[0]
    assert {planned.choice.dense[0].grid.bits for planned in found.output.layers if planned.layer.kind == "linear"} == {4}
    assert list(tmp_path.iterdir()) == []


def test_a_plan_for_another_text_or_model_is_refused(model: Path, cache: Path, planner: Planner, tmp_path: Path) -> None:
    options = Options(method=METHOD, effort="fast", cache=cache)
    made = plan(model, Budget(bits=5.0), options=options, device="cpu").plan
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"a passage of its own {n} " * 60}) + "\n" for n in range(12)))
    with pytest.raises(InputError, match="another text"):
        quantize(model, made, tmp_path / "out", text=text, options=options, device="cpu")
    other = zoo.make_model("gpt2", tmp_path / "gpt2", text=True)
    with pytest.raises(InputError, match="another model"):
        quantize(other, made, tmp_path / "out", options=options, device="cpu")
    assert not (tmp_path / "out").exists()


def test_what_is_written_as_it_is_is_charged(planner: Planner) -> None:
    made = output_of(planner.source, [offer.planned[0] for offer in planner.offers], SHARD, {})
    assert made.weights_bytes == passthrough_bytes(planner.source) + sum(planned.nbytes for planned in made.layers)


def test_measured_once(planner: Planner, measured: Measured) -> None:
    class Telling(Silent):
        def start(self, stage: str, total: int) -> None:
            raise AssertionError(f"{stage} was done again")

    again = Planner(planner.source, planner.settings, Run("cpu", Telling())).measured(6)
    prices = Prices.of(planner.source)
    assert again.table(prices, planner.offers, {}) == measured.table(prices, planner.offers, {})
