"""From a budget, or a plan made earlier, to what is written: the options of planning, and the plan with all it needs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bitbudget.allocation import Plan, ScoreTable
from bitbudget.errors import InputError
from bitbudget.kernels import packs
from bitbudget.methods import METHODS, LlmMq
from bitbudget.methods.recipe import Recipe
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.budgets import Budget
from bitbudget.pipeline.decide import decide
from bitbudget.pipeline.effort import SCRATCH_BYTES, Effort, effort_of
from bitbudget.pipeline.judging import scaled_again
from bitbudget.pipeline.memory import memory_promise
from bitbudget.pipeline.offers import chosen, offers, packing
from bitbudget.pipeline.output import DEFAULT_SHARD_BYTES, OutputPlan, PlannedLayer
from bitbudget.pipeline.planning import Planner, Settings
from bitbudget.pipeline.prepare import Preparation
from bitbudget.pipeline.progress import Run
from bitbudget.pipeline.quantize import Writing
from bitbudget.pipeline.solving import output_of, question
from bitbudget.pipeline.work import source_hashes
from bitbudget.transforms.fold import Fold


@dataclass(frozen=True)
class Options:
    """How to plan. method: one of `METHODS`, or a page with settings of its own. effort: fast, normal or best.

    context, kv_dtype, reserve: what a memory budget pays for beside the weights (see `memory_promise`). cache: folder that
    keeps what was measured; scratch_bytes: what hidden states may take there while measuring.
    """

    method: str | LlmMq = "llm-mq"
    effort: str = "normal"
    context: int | None = None
    kv_dtype: str | None = None
    reserve: int | None = None
    text: Path | None = None
    cache: Path | None = None
    scratch_bytes: int = SCRATCH_BYTES

    def recipe(self) -> Recipe:
        """Raises InputError for a method that is not known."""
        if isinstance(self.method, LlmMq):
            return self.method.recipe()
        if self.method not in METHODS:
            raise InputError(f"There is no method called {self.method!r}. Write one of {', '.join(METHODS)}.")
        return METHODS[self.method].recipe()

    def settings(self, recipe: Recipe, effort: Effort) -> Settings:
        return Settings(recipe, effort, self.text, self.cache, self.scratch_bytes)


@dataclass(frozen=True)
class Planned:
    """A plan and what it makes of the model. table: the scores it was solved from (None where nothing was measured)."""

    plan: Plan
    output: OutputPlan
    preparation: Preparation
    guard: dict[str, Any] | None = None
    memory: dict[str, Any] | None = None
    table: ScoreTable | None = field(default=None, repr=False)


def plan_for(source: SourceModel, budget: Budget, options: Options, max_shard_bytes: int, run: Run) -> Planned:
    """See `api.plan`."""
    if not budget:
        raise InputError("No budget was given. Name one, such as --memory 4GiB, --weights 3GB, --bits 4 or --disk 3GB.")
    recipe = options.recipe()
    planner = Planner(source, options.settings(recipe, effort_of(options.effort)), run)
    memory, packed = None, packs(planner.device)
    if budget.memory is not None:
        promise = memory_promise(source, options.context, options.kv_dtype, planner.device, options.reserve)
        memory = promise.to_dict() | {"budget": budget.memory}
    beside = memory["beside_weights"] if memory else 0
    asked = question(source, budget, beside, max_shard_bytes, recipe.order, packed)
    decided = decide(planner, asked)
    if memory is not None:
        memory["packing"] = packing({planned.layer: planned.choice for planned in decided.layers}) if packed else 0
    plan = replace(decided.plan, settings=dict(decided.plan.settings) | {"memory": memory, "comparison": decided.guard})
    return Planned(
        plan, _output(source, decided.layers, plan), decided.preparation, decided.guard, memory, decided.table
    )


def planned_from(source: SourceModel, plan: Plan, options: Options, run: Run) -> Planned:
    """A plan made earlier for this model; what it needs and is not in the cache any more is measured again.

    Raises:
        InputError: the plan belongs to another model or text, or names layers that this model does not have.
    """
    names = {layer.name for layer in source.layers}
    if plan.layers.keys() != names:
        odd = sorted(plan.layers.keys() ^ names)
        raise InputError(
            f"The plan is for another model: {len(odd)} layers are in one of them only, the first {odd[0]}. Plan again."
        )
    settings = plan.settings
    if "recipe" not in settings:  # solved from a table or written by hand: choices alone, for which no text matters
        _refuse_other(plan, {name: found for name, found in source_hashes(source).items() if name in plan.inputs})
        return Planned(plan, _output(source, chosen(_bare(source), plan.layers), plan), Preparation())
    try:
        recipe, effort = Recipe.from_dict(settings["recipe"]), Effort(**settings["effort"])
    except (KeyError, TypeError) as error:
        raise InputError(f"The plan's settings are damaged ({error!r}). Plan again.") from error
    planner = Planner(source, options.settings(recipe, effort), run)
    _refuse_other(plan, planner.hashes())
    layers = chosen(planner.offers, plan.layers)
    preparation = Preparation()
    if settings.get("scales"):
        calibration = planner.calibration()
        folds = {"first": lambda: calibration.fold, "again": lambda: scaled_again(planner, layers), "none": Fold.none}
        fold = folds[settings["scales"]]()
        preparation = Preparation(calibration, fold)
    return Planned(
        plan, _output(source, layers, plan), preparation, settings.get("comparison"), settings.get("memory")
    )


def _refuse_other(plan: Plan, hashes: Mapping[str, str]) -> None:
    """Raise InputError where a plan was made with something else. hashes: of what is here, by name."""
    for name, found in hashes.items():
        if plan.inputs.get(name) != found:
            raise InputError(
                f"The plan was made with another {name} (its hash is {plan.inputs.get(name)}, here it is {found}). Give the same "
                "model and --text, or plan again."
            )


def _bare(source: SourceModel) -> Any:
    return offers(source, METHODS["llm-mq"].recipe())


def _output(source: SourceModel, layers: tuple[PlannedLayer, ...], plan: Plan) -> OutputPlan:
    kept = ("method", "effort", "budget", "sequences", "scales", "guard", "max_shard_bytes")
    settings: dict[str, Any] = {"method": "plan", "max_shard_bytes": DEFAULT_SHARD_BYTES}
    settings |= {name: plan.settings[name] for name in kept if name in plan.settings}
    if isinstance(settings.get("effort"), dict):
        settings["effort"] = settings["effort"]["name"]
    return output_of(source, layers, settings["max_shard_bytes"], settings)


def writing_of(planned: Planned, name: str, text: dict[str, Any]) -> Writing:
    """What `write_checkpoint` needs."""
    extra = {"guard": planned.guard, "memory": planned.memory}
    return Writing(
        planned.output,
        name,
        text,
        planned.preparation,
        planned.plan,
        {key: value for key, value in extra.items() if value is not None},
    )
