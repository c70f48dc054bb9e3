"""Rivals and guard: they fit, they are named, and the best by real KL is written, whatever the scores said."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

import zoo
from bitbudget.allocation import plan_from_table
from bitbudget.errors import InputError
from bitbudget.methods import LlmMq
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.api import quantize
from bitbudget.pipeline.budgets import Budget
from bitbudget.pipeline.by_budget import Options
from bitbudget.pipeline.decide import Decided, decide
from bitbudget.pipeline.effort import Effort
from bitbudget.pipeline.guard import Candidate, Judged, best, judge
from bitbudget.pipeline.offers import KEPT, Prices, chosen
from bitbudget.pipeline.output import plan_layer
from bitbudget.pipeline.planning import Planner, Settings
from bitbudget.pipeline.prepare import Preparation
from bitbudget.pipeline.progress import Run, Silent
from bitbudget.pipeline.rivals import Rival, Rivals
from bitbudget.pipeline.solving import offered, output_of, question
from bitbudget.pipeline.table import Measured
from bitbudget.storage import Choice
from bitbudget.transforms.fold import Fold

METHOD = LlmMq(bits=(2, 3, 4, 8), groups=(16, 32), outliers=("0", "1%"), tables=("int4:g32", "int8:g32"), reference="int3:g32")
EFFORT = Effort("few", first=4, most=4, guard_tokens=1024)
SHARD = 10**9


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Planner:
    folder = zoo.make_model("llama", tmp_path_factory.mktemp("llama"), dtype=torch.bfloat16, text=True)
    settings = Settings(METHOD.recipe(), EFFORT, cache=tmp_path_factory.mktemp("cache"))
    return Planner(SourceModel.open(folder), settings, Run("cpu"))


@pytest.fixture(scope="module")
def measured(planner: Planner) -> Measured:
    return planner.measured(4)


def rivals_of(planner: Planner, measured: Measured, budget: Budget, shard: int = SHARD) -> Rivals:
    every = offered(planner.offers, budget)
    table = measured.table(Prices.of(planner.source), planner.offers, {})
    return Rivals(every, planner.settings.recipe, table, question(planner.source, budget, 0, shard), planner.source)


def amounts(planner: Planner, rival: Rival, shard: int = SHARD) -> dict[str, float]:
    made = output_of(planner.source, chosen(planner.offers, rival.layers), shard, {})
    return {
        "weights": made.weights_bytes, "disk": made.disk_bytes, "bits": made.stored_bits, "code_bits": made.code_bits,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["weights", "disk", "bits", "code_bits"])
@pytest.mark.parametrize("shard", [SHARD, 100_000])
def test_rivals_keep_to_the_budget(kind: str, shard: int, planner: Planner, measured: Measured) -> None:
    free = rivals_of(planner, measured, Budget(weights=10**9)).uniform()
    assert free is not None and free.name.startswith("uniform int8")
    most = amounts(planner, free, shard)[kind]
    found = 0
    for part in range(25, 101, 15):
        amount = most * part / 100 if kind in ("bits", "code_bits") else int(most * part / 100)
        rivals = rivals_of(planner, measured, Budget(**{kind: amount}), shard)
        for rival in (rivals.uniform(), rivals.hand()):
            if rival is not None:
                found += 1
                assert amounts(planner, rival, shard)[kind] <= amount + 1e-9
    assert found > 5


def test_uniform_is_one_choice_and_the_best_of_those_that_fit(planner: Planner, measured: Measured) -> None:
    rival = rivals_of(planner, measured, Budget(bits=5.0)).uniform()
    assert rival is not None
    texts = {text.split(":")[0] for name, text in rival.layers.items() if "layers." in name}
    assert len(texts) == 1
    scores = measured.estimates(planner.offers)
    assert rival.predicted == pytest.approx(
        sum(max(scores.get((name, text), (0.0, 0.0))[0], 0.0) for name, text in rival.layers.items())
    )


def test_the_hand_recipe_raises_value_and_down_at_both_ends(planner: Planner, measured: Measured) -> None:
    rival = rivals_of(planner, measured, Budget(bits=6.0)).hand()
    assert rival is not None
    found = re.match(r"hand recipe (int\d):g32\S*, value and down (int\d):g32\S* in some blocks", rival.name)
    assert found and found[1] < found[2], rival.name
    for name, text in rival.layers.items():
        if "layers.0." in name or "layers.2." in name:
            raised = name.endswith(("v_proj", "down_proj"))
            assert text.startswith(found[2] if raised else found[1]), name
    assert rivals_of(planner, measured, Budget(bits=2.0)).hand() is None


def test_without_a_limit_every_layer_has_its_largest_choice(planner: Planner, measured: Measured) -> None:
    table = measured.table(Prices.of(planner.source), planner.offers, {})
    solution = plan_from_table(table, {"bytes": None, "code_bits": None, "disk": None})
    assert all(text == "bf16" or text.startswith("int8") for text in solution.layers.values())


def candidate(planner: Planner, name: str, text: str, preparation: Preparation | None = None) -> Candidate:
    layers = tuple(
        plan_layer(layer, None if text == KEPT or layer.kind != "linear" else Choice.parse(text)) for layer in planner.source.layers
    )
    return Candidate(name, layers, preparation or Preparation(), None)


def judged(planner: Planner, *candidates: Candidate) -> tuple[Judged, ...]:
    return judge(planner.source, candidates, planner.sequences[:3], (planner.device, planner.dtype), Silent())


def test_the_same_twice_differs_by_nothing_and_the_original_loses_nothing(planner: Planner) -> None:
    first, twin, original, worse = judged(
        planner,
        candidate(planner, "first", "int4:g32"),
        candidate(planner, "twin", "int4:g32"),
        candidate(planner, "original", KEPT),
        candidate(planner, "worse", "int2:g32"),
    )
    assert first.difference is None and first.kl > 0
    assert (twin.kl, twin.difference, twin.difference_se) == (first.kl, 0.0, 0.0)
    assert original.kl == 0.0 and original.difference == -first.kl
    assert worse.kl > first.kl and worse.difference == pytest.approx(worse.kl - first.kl)
    assert best([first, twin, worse]) is first and best([worse, original, first]) is original


def test_folded_scales_alone_lose_nothing(planner: Planner) -> None:
    calibration = planner.calibration()
    folded = Preparation(calibration, calibration.fold)
    (found,) = judged(planner, candidate(planner, "folded", KEPT, folded))
    (plain,) = judged(planner, candidate(planner, "rounded", "int8:g32"))
    assert found.kl < plain.kl  # 16-bit tensors are rounded anew, no more


def test_a_candidate_without_a_number_loses() -> None:
    broken = Judged("broken", 1, None, float("nan"), None, float("nan"), None, None)
    fine = Judged("fine", 1, None, 3.0, None, 2.0, None, None)
    assert best([broken, fine]) is fine


def planted(planner: Planner, monkeypatch: pytest.MonkeyPatch) -> Decided:
    """Scores by which 2 bits lose nothing in any layer but one."""
    names = [layer.name for layer in planner.source.layers if layer.kind == "linear"]

    def estimates(
        self: Measured, offers: object, chosen: slice = slice(None), estimator: str | None = None
    ) -> dict[tuple[str, str], tuple[float, float]]:
        found = {}
        for offer in planner.offers:
            for one in offer.stored:
                bits = one.choice.dense[0].grid.bits
                bad = offer.layer.name == names[0] and bits < 4
                found[offer.layer.name, str(one.choice)] = (10.0 if bad else bits * 1e-3, 0.0)
        return found

    monkeypatch.setattr(Measured, "estimates", estimates)
    return decide(planner, question(planner.source, Budget(weights=planner_weights(planner)), 0, SHARD))


def planner_weights(planner: Planner) -> int:
    """Room for int4 in all linears, the tables as they are."""
    layers = candidate(planner, "", "int4:g16").layers
    return output_of(planner.source, layers, SHARD, {}).weights_bytes


def test_a_plan_that_is_worse_than_uniform_loses(planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    found = planted(planner, monkeypatch)
    assert found.guard is not None
    by_name = {one["name"]: one for one in found.guard["candidates"]}
    assert found.guard["winner"].startswith(("uniform", "hand")), by_name
    assert by_name[found.guard["winner"]]["kl"] == min(one["kl"] for one in by_name.values()) < by_name["plan"]["kl"]
    assert found.plan.settings["guard"] == found.guard["winner"]
    assert found.plan.layers == {one.layer.name: str(one.choice) for one in found.layers}
    assert "the guard took" in found.plan.notes[-1] and not found.plan.optimal
    assert found.plan.costs["bytes"] == sum(one.nbytes for one in found.layers)
    assert found.plan.loss == by_name[found.guard["winner"]]["predicted"]


def test_the_plan_of_a_winner_is_written_as_it_was_judged(
    planner: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = planted(planner, monkeypatch)
    monkeypatch.undo()
    options = Options(cache=planner.settings.cache)
    record = quantize(planner.source.folder, found.plan, tmp_path / "out", options=options, device="cpu")
    assert record["verification"]["passed"]
    assert {name: entry["choice"] for name, entry in record["output"]["layers"].items()} == dict(found.plan.layers)


def test_a_plan_of_other_weights_of_the_same_names_is_refused(planner: Planner, tmp_path: Path) -> None:
    """Solved from a table: no settings, but hashes of what was measured."""
    table = planner.measured(4).table(Prices.of(planner.source), planner.offers, planner.hashes())
    solved = plan_from_table(table, {"bytes": 10**6, "code_bits": None, "disk": None})
    other = zoo.make_model("llama", tmp_path / "other", text=True)  # fp32
    with pytest.raises(InputError, match="another"):
        quantize(other, solved, tmp_path / "out", device="cpu")
    damaged = dataclasses.replace(solved, settings={"recipe": {"method": "x"}, "effort": {}})
    with pytest.raises(InputError, match="damaged"):
        quantize(planner.source.folder, damaged, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
    assert Fold.none().fingerprint == Preparation().fold.fingerprint
