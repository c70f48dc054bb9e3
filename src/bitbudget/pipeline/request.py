"""What a quantize command asks for, as settings and hashes: enough to tell, before any work, whether a folder is its result, its
unfinished run, or another command's.

A request is a dict of JSON values by name, without times and paths. The record of the finished folder holds it, the journal of the
unfinished one its values as texts.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from bitbudget.allocation import Plan
from bitbudget.models.devices import compute_dtype, resolve_device
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.budgets import Budget
from bitbudget.pipeline.by_budget import Options
from bitbudget.pipeline.effort import effort_of
from bitbudget.pipeline.versions import versions
from bitbudget.pipeline.waves import wave_sequences
from bitbudget.pipeline.work import fingerprint, source_hashes


def by_choice(choice: str, embedding: str, head: str, max_shard_bytes: int) -> dict[str, Any]:
    """The settings of a command that names the choice of every layer."""
    return {"choice": choice, "embedding": embedding, "head": head, "max shard size": max_shard_bytes}


def by_budget(
    source: SourceModel, budget: Budget, options: Options, max_shard_bytes: int, device: str
) -> dict[str, Any]:
    """The settings of a command that names a budget. Raises InputError for a method, effort or scratch limit that cannot be."""
    effort = effort_of(options.effort)
    where = resolve_device(device)
    dtype = compute_dtype(where, source.config)
    asked: dict[str, Any] = {"budget": budget.to_dict(), **_recipe(options), "effort": asdict(effort)}
    if budget.memory is not None:
        named = {"context": options.context, "kv dtype": options.kv_dtype, "reserve": options.reserve}
        asked |= {name: value for name, value in named.items() if value is not None}
    # A scratch limit that leaves the first wave whole changes nothing.
    first = min(effort.first, wave_sequences(source, options.scratch_bytes, dtype))
    return asked | {"sequences of the first wave": first, "max shard size": max_shard_bytes}


def by_plan(plan: Plan) -> dict[str, Any]:
    """The settings of a command that gives a plan: all others stand in the plan."""
    return {"plan": fingerprint(plan.to_dict())}


def request_of(
    source: SourceModel, name: str, text: Mapping[str, Any], device: str, how: Mapping[str, Any]
) -> dict[str, Any]:
    """how: of `by_choice`, `by_budget` or `by_plan`. name: what the record calls the source. text: its entry there.

    Of the weights only headers are looked at.
    """
    where = resolve_device(device)
    dtype = str(compute_dtype(where, source.config)).removeprefix("torch.")
    return {
        "model": name,
        **source_hashes(source),
        **how,
        "text": text["sha256"],
        "text's name": text["name"],
        "device": f"{where.type}, {dtype}",
        **{f"version of {package}": number for package, number in versions().items()},
    }


def _recipe(options: Options) -> dict[str, Any]:
    described = asdict(options.recipe())
    return {"method": described.pop("method"), **{f"method's {name}": value for name, value in described.items()}}
