"""The main job: plan under a budget, and quantize by a budget, a plan or one choice."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitbudget.cli import options
from bitbudget.cli.app import app
from bitbudget.errors import InputError
from bitbudget.pipeline.effort import SCRATCH_BYTES
from bitbudget.pipeline.runlog import logged
from bitbudget.report.checkpoint import quantized, show_quantized
from bitbudget.report.decided import decided, show_decided
from bitbudget.report.session import session

if TYPE_CHECKING:
    from bitbudget.methods import LlmMq


@app.command(epilog=options.EXIT_HELP)
def plan(  # noqa: PLR0913 -- one parameter an option
    model: options.Model,
    memory: options.Memory = None,
    weights: options.Weights = None,
    disk: options.Disk = None,
    bits: options.Bits = None,
    code_bits: options.CodeBits = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="PLAN", help="File for the plan.", show_default="none")
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File for the score table, .json or .npz, to `solve` other budgets from."),
    ] = None,
    plots: options.Plots = None,
    method: options.Method = "llm-mq",
    effort: options.EffortName = "normal",
    widths: options.Widths = None,
    groups: options.Groups = None,
    outliers: options.OutlierShares = None,
    range_rule: options.RangeRule = None,
    context: options.Context = None,
    kv_dtype: options.KvDtype = None,
    reserve: options.Reserve = None,
    text: options.TextFile = None,
    cache: options.Cache = None,
    scratch: options.Scratch = SCRATCH_BYTES,
    device: options.Device = "auto",
    max_shard_size: options.ShardSize = 5 * 10**9,
    trust_remote_code: options.RemoteCode = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Choose how every layer is stored within a budget.

    Measures what each layer loses by each choice, solves for the budget, and compares the plan with the best uniform one
    and a hand recipe. What was measured is kept: another budget is only solved.
    """
    with session(as_json, debug) as running:
        running.load()
        from bitbudget.pipeline import api
        from bitbudget.pipeline.budgets import Budget
        from bitbudget.pipeline.by_budget import Options

        how = Options(
            _method(method, widths, groups, outliers, range_rule), effort, context, kv_dtype, reserve, None, cache, scratch
        )
        found = api.plan(
            model,
            Budget(memory, weights, disk, bits, code_bits),
            options=how,
            text=text,
            device=device,
            max_shard_bytes=max_shard_size,
            trust_remote_code=trust_remote_code,
            progress=running.progress,
        )
        if output is not None:
            found.plan.save(output)
        if scores is not None and found.table is not None:
            found.table.save(scores)
        elif scores is not None:
            running.note(f"Nothing was measured for this budget, so {scores} was not written.")
        shown = decided(found.plan, found.output.to_dict(), found.guard, found.memory)
        running.show(shown, lambda: show_decided(running.results, shown, found.plan))
        if plots is not None:
            from bitbudget.report.plots import save_plots

            drawn = save_plots(plots, shown["output"]["layers"], found.plan, found.guard, model)
            running.note(f"Drawn: {', '.join(map(str, drawn))}")


@app.command(epilog=options.EXIT_HELP)
def quantize(  # noqa: PLR0913 -- one parameter an option
    model: options.Model,
    output: options.Output,
    memory: options.Memory = None,
    weights: options.Weights = None,
    disk: options.Disk = None,
    bits: options.Bits = None,
    code_bits: options.CodeBits = None,
    choice: options.ChoiceText = None,
    plan_file: Annotated[
        Path | None,
        typer.Option("--plan", metavar="PLAN", help="A plan that `plan` or `solve` wrote.", show_default=False),
    ] = None,
    embedding: options.Embedding = options.KEPT,
    head: options.Head = options.KEPT,
    method: options.Method = "llm-mq",
    effort: options.EffortName = "normal",
    widths: options.Widths = None,
    groups: options.Groups = None,
    outliers: options.OutlierShares = None,
    range_rule: options.RangeRule = None,
    context: options.Context = None,
    kv_dtype: options.KvDtype = None,
    reserve: options.Reserve = None,
    text: options.TextFile = None,
    cache: options.Cache = None,
    scratch: options.Scratch = SCRATCH_BYTES,
    device: options.Device = "auto",
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Verify the result.")] = True,
    max_shard_size: options.ShardSize = 5 * 10**9,
    trust_remote_code: options.RemoteCode = False,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Store a model within a budget, by a plan, or by one choice, and verify the result.

    Stopped at any time, the same command continues; when all is done, it ends at once.
    Times are logged beside OUT, in OUT.run.jsonl.
    """
    named = {"memory": memory, "weights": weights, "disk": disk, "bits": bits, "code_bits": code_bits}
    asked = {name: value for name, value in named.items() if value is not None}
    command = {"model": model, "choice": choice, "budget": asked, "plan": str(plan_file or ""), "device": device}
    planning = {
        "--widths": widths, "--groups": groups, "--outliers": outliers, "--range": range_rule, "--context": context,
        "--kv-dtype": kv_dtype, "--reserve": reserve,
    }  # fmt: skip
    outside = {"--embedding": embedding != options.KEPT, "--head": head != options.KEPT}
    with session(as_json, debug, output) as running:
        _one_way(choice, plan_file, asked)
        _of_no_use(planning if not asked else outside, "a budget" if not asked else "--choice")
        if plan_file:
            _of_no_use(outside, "--choice")
        running.load()
        from bitbudget.pipeline import api
        from bitbudget.pipeline.budgets import Budget
        from bitbudget.pipeline.by_budget import Options

        how = Options(
            _method(method, widths, groups, outliers, range_rule), effort, context, kv_dtype, reserve, None, cache, scratch
        )
        with logged(running.progress, output, command) as log:
            record = api.quantize(
                model,
                choice or plan_file or Budget(memory, weights, disk, bits, code_bits),
                output,
                embedding=embedding,
                head=head,
                options=how,
                text=text,
                device=device,
                verify=verify,
                max_shard_bytes=max_shard_size,
                trust_remote_code=trust_remote_code,
                progress=log,
            )
        if not log.worked:
            running.note(f"{output} was finished by this command before. Nothing was done.")
        running.show(quantized(output, record), lambda: show_quantized(running.results, output, record))
        running.note(f'Try it: bitbudget run {output} "Once upon a time"')


def _one_way(choice: str | None, plan_file: Path | None, budgets: dict[str, Any]) -> None:
    ways = [name for name, given in (("--choice", choice), ("--plan", plan_file), ("a budget", budgets)) if given]
    if len(ways) != 1:
        given = f"{' and '.join(ways)} were given" if ways else "none was given"
        raise InputError(
            "Say in one way how the model is to be stored: a budget (--memory 4GiB, --weights, --disk, --bits, --code-bits), "
            f"--plan, or --choice; {given}."
        )


def _of_no_use(options_given: Mapping[str, Any], goes_with: str) -> None:
    """Raise InputError for options that the way chosen would ignore."""
    idle = [name for name, value in options_given.items() if value]
    if idle:
        raise InputError(f"{' and '.join(idle)} would change nothing here: only {goes_with} reads it. Leave it out.")


def _method(
    name: str, widths: str | None, groups: str | None, outliers: str | None, range_rule: str | None
) -> "str | LlmMq":
    """The method, with the choices that the user named in place of its own."""
    from bitbudget.methods import METHODS

    if name not in METHODS or not any((widths, groups, outliers, range_rule)):
        return name
    return METHODS[name].offering(widths, groups, outliers, range_rule)
