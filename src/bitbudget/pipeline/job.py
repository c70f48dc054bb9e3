"""One quantize command after its words are understood: what it asks for, and what that makes of the model."""

from dataclasses import dataclass
from typing import Any

from bitbudget.allocation import Plan
from bitbudget.errors import InputError
from bitbudget.methods.recipe import KEPT
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.budgets import Budget, described
from bitbudget.pipeline.by_budget import Options, plan_for, planned_from, writing_of
from bitbudget.pipeline.output import uniform_plan
from bitbudget.pipeline.progress import Run
from bitbudget.pipeline.quantize import Writing
from bitbudget.pipeline.request import by_budget, by_choice, by_plan
from bitbudget.storage import Choice


@dataclass(frozen=True)
class Job:
    """how: a budget, a plan, or the text of a choice for the linears of all blocks. outside: texts for embedding and head."""

    source: SourceModel
    how: Budget | Plan | str
    outside: tuple[str, str]
    options: Options
    max_shard_bytes: int
    run: Run

    def settings(self) -> dict[str, Any]:
        """What tells this command from others, besides model and text. Nothing is measured for it."""
        if isinstance(self.how, Budget):
            return by_budget(self.source, self.how, self.options, self.max_shard_bytes, self.run.device)
        if isinstance(self.how, Plan):
            return by_plan(self.how)
        return by_choice(self.how, *self.outside, self.max_shard_bytes)

    def writing(self, name: str, text: dict[str, Any]) -> Writing:
        """What will be written, measured and solved where that is needed. name, text: see `Writing`."""
        if isinstance(self.how, Budget):
            planned = plan_for(self.source, self.how, self.options, self.max_shard_bytes, self.run)
            return _not_idle(writing_of(planned, name, text), f"{described(self.how)} has room for the model as it is")
        if isinstance(self.how, Plan):
            planned = planned_from(self.source, self.how, self.options, self.run)
            return _not_idle(writing_of(planned, name, text), "The plan keeps every layer as it is")
        embedding, head = map(parse, self.outside)
        made = uniform_plan(self.source, Choice.parse(self.how), embedding, head, self.max_shard_bytes)
        if not made.stored_choices:
            reasons = sorted({entry.note for entry in made.layers if entry.note})
            why = f" ({'; '.join(reasons)})" if reasons else ""
            raise InputError(
                f"With the choice {made.settings['choice']} every layer stays as it is{why}, so nothing would be quantized. "
                "Give a choice such as int4:g128, or copy the model's folder."
            )
        return Writing(made, name, text)


def _not_idle(writing: Writing, why: str) -> Writing:
    """Raise InputError if every layer would stay as it is: that is a copy, not a checkpoint of ours."""
    if not writing.plan.stored_choices:
        raise InputError(
            f"{why} ({writing.plan.weights_bytes:,} bytes of weights), so nothing would be quantized. Use the model's own folder, "
            "or give a smaller budget."
        )
    return writing


def refuse_typos(*words: object) -> None:
    """Raise InputError for a choice that is misspelt, before a model is opened."""
    for word in words:
        if isinstance(word, str):
            parse(word)


def parse(word: str) -> Choice | None:
    """A choice by its text, None for a layer that is kept. Raises InputError."""
    return None if word == KEPT else Choice.parse(word)
