"""The five verbs of the library, with the words of the command line."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from bitbudget.calibration.split import split
from bitbudget.calibration.tokenizer import Tokenizer
from bitbudget.data import DEMO_NAME, demo_model_folder, resolve_model
from bitbudget.errors import InputError, VerificationError
from bitbudget.models.devices import resolve_device
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.measure import Measurement
from bitbudget.pipeline.output import DEFAULT_SHARD_BYTES, OutputPlan, uniform_plan
from bitbudget.pipeline.progress import Progress, Run, Silent
from bitbudget.pipeline.quantize import write_checkpoint, write_record
from bitbudget.pipeline.texts import Cut, open_text, sample, text_entry
from bitbudget.pipeline.verify import EVALUATE_CUT, VERIFY_CUT, Verification, evaluate_folder, verify_folder
from bitbudget.storage import Choice

KEPT = "16bit"


def quantize(
    model: str | Path,
    choice: str,
    output: str | Path,
    *,
    embedding: str = KEPT,
    head: str = KEPT,
    text: str | Path | None = None,
    device: str = "auto",
    verify: bool = True,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Store the linears of a model's blocks by one choice, write the checkpoint to `output` and verify it.

    model: a folder, a hub id, or "demo". choice, embedding, head: such as "int4:g128"; "16bit" keeps a tensor as it is.
    text: plain text or JSONL to verify on (default: the packaged books). Returns the record that bitbudget.json holds.

    Raises:
        InputError: the model, text or choice cannot be used; nothing was written.
        OutputError: the folder or disk cannot take the result.
        VerificationError: the finished folder does not hold what it promises.
    """
    run, output = Run(device, progress or Silent(), trust_remote_code), Path(output)
    of_embedding, of_head = _parse(embedding), _parse(head)
    resolve_device(device)
    source = open_source(model, trust_remote_code)
    plan = uniform_plan(source, Choice.parse(choice), of_embedding, of_head, max_shard_bytes)
    refuse_idle(plan)
    tokenizer = Tokenizer.open(source.folder, trust_remote_code)
    words = open_text(Path(text) if text else None, tokenizer)
    parts = split(words)
    if verify:  # too short a text is found now, not after the work
        sample(words, parts.acceptance, tokenizer, source, VERIFY_CUT)
    record = write_checkpoint(source, plan, output, text_entry(words, parts), source_name(model), run.progress)
    if verify:
        result = verify_folder(output, source, words.path, run)
        write_record(output, record | {"verification": result.to_dict()})
        require_passed(result, output)
        record["verification"] = result.to_dict()
    return record


def verify(
    folder: str | Path,
    against: str | Path | None = None,
    *,
    text: str | Path | None = None,
    device: str = "auto",
    tokens: int | None = VERIFY_CUT.tokens,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Verification:
    """Check a finished folder, with `against` (the original model) its tensors and its KL divergence too.

    Returns what was found; `passed` says whether all is well. The folder is not changed.
    """
    original = None if against is None else open_source(against, trust_remote_code)
    run = Run(device, progress or Silent(), trust_remote_code)
    return verify_folder(Path(folder), original, Path(text) if text else None, run, replace(VERIFY_CUT, tokens=tokens))


def evaluate(
    folder: str | Path,
    text: str | Path,
    against: str | Path | None = None,
    *,
    window: int = EVALUATE_CUT.window,
    stride: int | None = None,
    tokens: int | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Measurement:
    """Perplexity of a finished folder on a text, with `against` its KL divergence from the original too.

    A text that the plan was made with is used in its evaluation part only.
    """
    original = None if against is None else open_source(against, trust_remote_code)
    run = Run(device, progress or Silent(), trust_remote_code)
    measured, _ = evaluate_folder(Path(folder), Path(text), original, run, Cut(window, stride, tokens))
    return measured


def _parse(word: str) -> Choice | None:
    return None if word == KEPT else Choice.parse(word)


def open_source(model: str | Path, trust_remote_code: bool = False) -> SourceModel:
    """The model that a user names: a folder, a hub id, or `demo`."""
    return SourceModel.open(resolve_model(str(model)), trust_remote_code=trust_remote_code)


def source_name(model: str | Path) -> str:
    """What plans call the source: the folder's name, never its path, or the hub id."""
    if str(model) == DEMO_NAME:
        return demo_model_folder().name
    return Path(model).resolve().name if Path(model).is_dir() else str(model)


def refuse_idle(plan: OutputPlan) -> None:
    """Raise InputError if every layer would stay as it is: that is a copy, not a checkpoint of ours."""
    if not plan.stored_choices:
        notes = {planned.note for planned in plan.layers if planned.note}
        why = f" ({'; '.join(sorted(notes))})" if notes else ""
        raise InputError(
            f"With the choice {plan.settings['choice']} every layer stays as it is{why}, so nothing would be quantized. "
            "Give a choice such as int4:g128, or copy the model's folder."
        )


def require_passed(result: Verification, folder: Path) -> None:
    """Raise VerificationError with everything that was found."""
    if not result.passed:
        found = "\n".join(f"  - {problem}" for problem in result.problems)
        raise VerificationError(
            f"{folder} failed its verification:\n{found}\nThe folder was left as it is; do not use it."
        )
