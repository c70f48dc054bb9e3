"""The verbs of the library, with the words of the command line."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bitbudget.allocation import Plan
from bitbudget.calibration.split import split
from bitbudget.calibration.tokenizer import Tokenizer
from bitbudget.data import DEMO_NAME, demo_model_folder, resolve_model
from bitbudget.errors import VerificationError
from bitbudget.methods.recipe import KEPT
from bitbudget.models.devices import resolve_device
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.budgets import Budget
from bitbudget.pipeline.by_budget import Options, Planned, plan_for
from bitbudget.pipeline.job import Job, refuse_typos
from bitbudget.pipeline.measure import Measurement
from bitbudget.pipeline.output import DEFAULT_SHARD_BYTES
from bitbudget.pipeline.plans import read_plan
from bitbudget.pipeline.progress import Progress, Run, Silent
from bitbudget.pipeline.quantize import write_checkpoint, write_record
from bitbudget.pipeline.request import request_of
from bitbudget.pipeline.standing import finished_before
from bitbudget.pipeline.texts import Cut, open_text, sample, text_entry
from bitbudget.pipeline.verify import EVALUATE_CUT, VERIFY_CUT, Verification, evaluate_folder, verify_folder

DEFAULT_OPTIONS = Options()


def plan(
    model: str | Path,
    budget: Budget,
    *,
    options: Options = DEFAULT_OPTIONS,
    text: str | Path | None = None,
    device: str = "auto",
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Planned:
    """The best plan that meets a budget, compared with its rivals on text that nothing was measured on.

    model: a folder, a hub id, or "demo". text: plain text or JSONL to measure on (default: the packaged books). What is
    measured stays in the cache folder, so that another budget is only solved.

    Raises:
        InputError: the model, text or options cannot be used.
        BudgetError: no plan meets the budget; nothing was measured.
        OutputError: the cache folder or its disk cannot take the measurements.
    """
    run = Run(device, progress or Silent(), trust_remote_code)
    source = open_source(model, trust_remote_code)
    return plan_for(source, budget, replace(options, text=_path(text)), max_shard_bytes, run)


def quantize(
    model: str | Path,
    how: str | Budget | Plan | Path,
    output: str | Path,
    *,
    embedding: str = KEPT,
    head: str = KEPT,
    options: Options = DEFAULT_OPTIONS,
    text: str | Path | None = None,
    device: str = "auto",
    verify: bool = True,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Store a model within a budget, by a plan, or by one choice; write the checkpoint to `output` and verify it.

    model: a folder, a hub id, or "demo". how: a `Budget`; a `Plan` or the path of one; or a choice such as "int4:g128" for the
    linears of all blocks, with `embedding` and `head` beside it ("16bit" keeps a tensor as it is).
    text: plain text or JSONL to measure and verify on (default: the packaged books). Returns the record that bitbudget.json holds.
    A run that was stopped goes on; of a finished one the record is returned at once, verified if it was not yet.

    Raises:
        InputError: the model, text, choice or plan cannot be used; nothing was written.
        BudgetError: no plan meets the budget; nothing was written.
        OutputError: the folder or disk cannot take the result, or the folder holds another command's.
        VerificationError: the finished folder does not hold what it promises.
    """
    run, output = Run(device, progress or Silent(), trust_remote_code), Path(output)
    refuse_typos(how, embedding, head)
    resolve_device(device)
    source = open_source(model, trust_remote_code)
    words = _Words.open(source, _path(text), run)
    if verify:  # too short a text is found now, not after the work
        words.check()
    given = read_plan(how) if isinstance(how, Path) else how
    job = Job(source, given, (embedding, head), replace(options, text=_path(text)), max_shard_bytes, run)
    request = request_of(source, source_name(model), words.entry, device, job.settings())
    record = finished_before(output, request, source) or _written(job, request, words, output)
    done = not verify or record.get("verification", {}).get("passed")
    return record if done else _verified(record, source, output, words.path, run)


def _written(job: Job, request: dict[str, Any], words: "_Words", output: Path) -> dict[str, Any]:
    writing = replace(job.writing(request["model"], words.entry), request=request)
    return write_checkpoint(job.source, writing, output, job.run.progress)


def _verified(
    record: dict[str, Any], source: SourceModel, output: Path, text: Path, run: Run
) -> dict[str, Any]:
    result = verify_folder(output, source, text, run)
    record = record | {"verification": result.to_dict()}
    write_record(output, record)
    require_passed(result, output)
    return record


@dataclass(frozen=True)
class _Words:
    """The text that a checkpoint is verified on."""

    source: SourceModel
    tokenizer: Tokenizer
    text: Any
    parts: Any

    @classmethod
    def open(cls, source: SourceModel, path: Path | None, run: Run) -> "_Words":
        tokenizer = Tokenizer.open(source.folder, run.trust_remote_code)
        text = open_text(path, tokenizer)
        return cls(source, tokenizer, text, split(text))

    @property
    def path(self) -> Path:
        return self.text.path

    @property
    def entry(self) -> dict[str, Any]:
        return text_entry(self.text, self.parts)

    def check(self) -> None:
        """Raise InputError where the verification would find the text too short."""
        for part in (self.parts.acceptance, self.parts.evaluation):
            sample(self.text, part, self.tokenizer, self.source, VERIFY_CUT)


def _path(text: str | Path | None) -> Path | None:
    return Path(text) if text else None


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


def open_source(model: str | Path, trust_remote_code: bool = False) -> SourceModel:
    """The model that a user names: a folder, a hub id, or `demo`."""
    return SourceModel.open(resolve_model(str(model)), trust_remote_code=trust_remote_code)


def source_name(model: str | Path) -> str:
    """What plans call the source: the folder's name, never its path, or the hub id."""
    if str(model) == DEMO_NAME:
        return demo_model_folder().name
    return Path(model).resolve().name if Path(model).is_dir() else str(model)


def require_passed(result: Verification, folder: Path) -> None:
    """Raise VerificationError with everything that was found."""
    if not result.passed:
        found = "\n".join(f"  - {problem}" for problem in result.problems)
        raise VerificationError(
            f"{folder} failed its verification:\n{found}\nThe folder was left as it is; do not use it."
        )
