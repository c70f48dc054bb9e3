"""A plan on one page: its budget, what is stored how, what it is predicted to lose, and what the guard measured."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console

from bitbudget.report.bits import show_bits
from bitbudget.report.plans import show_plan
from bitbudget.report.sizes import divergence, exact_size
from bitbudget.report.terminal import new_table, printable, say

if TYPE_CHECKING:
    from bitbudget.allocation import Plan

SHORT = {"uniform": "uniform", "hand": "by hand", "plan, scales": "rescaled", "plan, without": "unscaled"}


def decided(
    plan: "Plan", output: Mapping[str, Any], guard: Mapping[str, Any] | None, memory: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What `plan --json` prints."""
    return {"plan": plan.to_dict(), "output": dict(output), "guard": guard, "memory": memory}


def show_decided(console: Console, shown: Mapping[str, Any], plan: "Plan") -> None:
    """The plan for people."""
    output = shown["output"]
    say(
        console,
        f"Weights {exact_size(output['weights_bytes'])}, files {exact_size(output['disk_bytes'])}, "
        f"{output['stored_bits']:.3f} stored bits a weight, {output['code_bits']:.3f} code bits in the blocks' linears.",
    )
    if shown["memory"]:
        show_memory(console, shown["memory"], output["weights_bytes"])
    console.print()
    show_plan(console, plan)
    console.print()
    show_bits(console, output["layers"])
    if shown["guard"]:
        console.print()
        show_guard(console, shown["guard"])


def show_memory(console: Console, memory: Mapping[str, Any], weights_bytes: int) -> None:
    """What a memory budget pays for."""
    beside = {name: memory[name] for name in ("kv_cache", "activations", "workspace", "reserve")}
    parts = {"weights": weights_bytes, "packing them": memory.get("packing", 0), **beside}
    listed = ", ".join(f"{name.replace('_', ' ')} {exact_size(nbytes)}" for name, nbytes in parts.items())
    say(
        console,
        f"Memory {exact_size(sum(parts.values()))} of {exact_size(memory['budget'])} at a context of {memory['context']:,} "
        f"tokens: {listed}.",
    )


def show_guard(console: Console, guard: Mapping[str, Any]) -> None:
    """Candidates side by side on the acceptance text."""
    say(console, f"Compared on {guard['tokens']:,} tokens of {guard['documents']} documents that nothing was measured on:")
    table = new_table("candidate", "bytes", "predicted", "KL ± SE, nats", "difference ± SE")
    for one in guard["candidates"]:
        predicted = "-" if one["predicted"] is None else f"{one['predicted']:.5f}"
        difference = "-" if one["difference"] is None else divergence(one["difference"], one["difference_se"])
        table.add_row(
            _short(one["name"]),
            f"{one['bytes']:,}",
            predicted,
            divergence(one["kl"], one["kl_se"]),
            difference,
        )
    console.print(table)
    for one in guard["candidates"]:
        if _short(one["name"]) != one["name"]:
            say(console, f"{_short(one['name'])}: {printable(one['name'])}")
    say(console, f"Taken: {printable(guard['winner'])}.")


def _short(name: str) -> str:
    """One word for a candidate."""
    return next((word for start, word in SHORT.items() if name.startswith(start)), name)
