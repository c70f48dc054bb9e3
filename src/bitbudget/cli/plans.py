"""Commands on plans: solve a score table for a budget, compare two plans. Neither loads torch."""

from pathlib import Path
from typing import Annotated

import typer

from bitbudget.cli import options
from bitbudget.cli.app import app
from bitbudget.report.plans import show_difference, show_plan
from bitbudget.report.session import session
from bitbudget.report.sizes import parse_size

Scores = Annotated[Path, typer.Argument(metavar="SCORES", help="Score table, .json or .npz.", show_default=False)]
PlanFile = Annotated[
    Path, typer.Argument(metavar="PLAN", help="A plan file, or a folder that `quantize` wrote.", show_default=False)
]


def _budgets(texts: list[str]) -> dict[str, int | None]:
    budgets: dict[str, int | None] = {}
    for text in texts:
        name, _, amount = text.partition("=")
        number = parse_size(amount)
        if not name or number is None or name in budgets:
            raise typer.BadParameter(f"{text!r} is no budget. Write each dimension once, with an amount: bytes=4GiB.")
        budgets[name] = number
    return budgets


@app.command(epilog=options.EXIT_HELP)
def solve(
    scores: Scores,
    budget: Annotated[
        list[str], typer.Option(metavar="NAME=AMOUNT", help="Such as bytes=4GiB; repeat for more.", show_default=False)
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="PLAN", help="File for the plan.", show_default="none")
    ] = None,
    as_json: options.AsJson = False,
    debug: options.Debug = False,
) -> None:
    """Choose the best plan of a score table under budgets, with a proof of how good it is.

    The scores are measured once; any other budget is solved from the same table in seconds.
    """
    budgets = _budgets(budget)
    with session(as_json, debug) as running:
        from bitbudget.allocation import ScoreTable, plan_from_table

        with running.stage("solve"):
            plan = plan_from_table(ScoreTable.load(scores), budgets)
        if output is not None:
            plan.save(output)
        running.show(plan.to_dict(), lambda: show_plan(running.results, plan))


@app.command(epilog=options.EXIT_HELP)
def diff(before: PlanFile, after: PlanFile, as_json: options.AsJson = False, debug: options.Debug = False) -> None:
    """Show what one plan does otherwise than another."""
    with session(as_json, debug) as running:
        from bitbudget.allocation import diff as compare
        from bitbudget.pipeline.plans import read_plan

        difference = compare(read_plan(before), read_plan(after))
        running.show(difference.to_dict(), lambda: show_difference(running.results, difference))
