"""What quantizing a model would give and take, known from its config and the headers of its files: no weight is read.

Bytes come from the plan that `quantize` would write, so they are exact. Memory is added up from what the stages hold,
seconds from a probe of this machine.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitbudget.data import resolve_model
from bitbudget.methods import METHODS
from bitbudget.methods.recipe import KEPT
from bitbudget.models.devices import compute_dtype, resolve_device
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.cache_size import KvCache, kv_cache
from bitbudget.pipeline.durations import stage_seconds
from bitbudget.pipeline.effort import effort_of
from bitbudget.pipeline.output import OutputPlan, uniform_plan
from bitbudget.pipeline.peaks import memory_now, stage_peaks
from bitbudget.pipeline.planning import Planner, Settings
from bitbudget.pipeline.planning_time import PlanningStage, PlanningTime
from bitbudget.pipeline.probe import Kind, Speeds, measure_speeds
from bitbudget.pipeline.progress import Run
from bitbudget.pipeline.workload import Workload, weights
from bitbudget.storage import Choice

DEFAULT_CHOICES = (
    *("int8:g128", "int8s:g128", "int6:g128", "int5:g128", "int4:g128", "int4s:g128"),
    *("int3:g128", "int2:g128"),
)
STAGES_CHOICE = "int4:g128"  # whose stages are forecast, where it is asked for
SMALLEST = ("int2:g128", "int4:g128", "int4:g128")  # linears, embedding, head


@dataclass(frozen=True)
class Row:
    """One uniform choice: bytes of its tensors, of its files, and bits a weight (see `OutputPlan`)."""

    choice: str
    embedding: str
    head: str
    weights_bytes: int
    disk_bytes: int
    stored_bits: float
    code_bits: float


@dataclass(frozen=True)
class Now:
    """The source as it lies on the disk."""

    weights_bytes: int
    disk_bytes: int
    tensors: int
    files: int
    layers: int
    blocks: int


@dataclass(frozen=True)
class Kept:
    """Tensors that stay as they are, by reason. `nbytes` in the source; an equal copy is not written again."""

    reason: str
    tensors: int
    nbytes: int


@dataclass(frozen=True)
class Fallback:
    """Layers that cannot take a choice, with what they take instead (`note`) and the first one's name."""

    choice: str
    note: str
    layers: int
    first: str


@dataclass(frozen=True)
class Stage:
    """One stage of `quantize` with its verification, up to `disk_bytes` written and `scratch_bytes` besides.

    ram_bytes: peak of the process, what it holds now included. device_bytes: of an accelerator, 0 on the CPU.
    seconds: None without a probe.
    """

    name: str
    ram_bytes: int
    device_bytes: int
    disk_bytes: int
    scratch_bytes: int
    seconds: float | None


@dataclass(frozen=True)
class Forecast:
    """All that can be told beforehand. Bytes are exact; `stages` are estimates, for the choice `stages_choice`; `planning`, before
    them, is what choosing for a budget takes with `effort` (none if no effort was named).
    """

    now: Now
    rows: tuple[Row, ...]
    smallest: Row
    largest: Row
    kv_cache: KvCache
    kept: tuple[Kept, ...]
    fallbacks: tuple[Fallback, ...]
    stages: tuple[Stage, ...]
    stages_choice: str
    device: str
    speeds: Speeds | None
    effort: str | None = None
    planning: tuple[PlanningStage, ...] = ()

    @property
    def reachable(self) -> tuple[int, int]:
        """Bytes of the weights of the smallest and of the largest row."""
        return self.smallest.weights_bytes, self.largest.weights_bytes

    @property
    def peak_ram_bytes(self) -> int:
        return max(stage.ram_bytes for stage in self.stages)

    @property
    def seconds(self) -> float | None:
        """Of all stages together."""
        return None if self.speeds is None else sum(stage.seconds or 0.0 for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        totals = {"reachable": list(self.reachable), "peak_ram_bytes": self.peak_ram_bytes, "seconds": self.seconds}
        return asdict(self) | totals


def forecast(  # noqa: PLR0913 -- the words of the command line
    model: str | Path,
    *,
    choices: Sequence[str] = DEFAULT_CHOICES,
    embedding: str = KEPT,
    head: str = KEPT,
    context: int | None = None,
    kv_dtype: str = "fp16",
    device: str = "auto",
    probe: bool = True,
    effort: str | None = None,
    trust_remote_code: bool = False,
) -> Forecast:
    """What every uniform choice would take, and what making it would.

    model: a folder, a hub id, or "demo". embedding, head: a choice, or "16bit" to keep them. context: tokens of the
    key-value cache, by default the model's longest, at most 8,192. kv_dtype: fp16, bf16, fp32, fp8 or int8. probe:
    measure this machine for about three seconds; without it stages have no seconds. effort: fast, normal or best, to be told
    how long planning for a budget takes (reads tokenizer and text, and needs the probe).

    Raises InputError for a model, choice, context or dtype that cannot be used, OutputError if the probe cannot write.
    """
    where = resolve_device(device)
    source = SourceModel.open(resolve_model(str(model)), trust_remote_code=trust_remote_code)
    cache = kv_cache(source, context, kv_dtype)
    plans = {text: _plan(source, text, embedding, head) for text in choices}
    named = next(iter(plans), STAGES_CHOICE) if STAGES_CHOICE not in plans else STAGES_CHOICE
    plan = plans.get(named) or _plan(source, named, embedding, head)
    work = Workload(source, plan, where, compute_dtype(where, source.config))
    speeds = _speeds(work) if probe else None
    planning = _planning(work, speeds, effort, trust_remote_code) if effort and speeds else None
    return Forecast(
        now=_now(source),
        rows=tuple(_row(plan) for plan in plans.values()),
        smallest=_row(_plan(source, *SMALLEST)),
        largest=_row(_plan(source, "bf16", KEPT, KEPT)),  # any float choice keeps a layer in the source's own dtype
        kv_cache=cache,
        kept=_kept(source, plan),
        fallbacks=_fallbacks(plans.items()),
        stages=_stages(work, speeds, planning),
        stages_choice=named,
        device=str(where),
        speeds=speeds,
        effort=effort,
        planning=planning.stages() if planning else (),
    )


def _planning(work: Workload, speeds: Speeds, effort: str, trust_remote_code: bool) -> PlanningTime:
    """Of planning as `plan` does it by default."""
    settings = Settings(METHODS["llm-mq"].recipe(), effort_of(effort))
    planner = Planner(work.source, settings, Run(str(work.device), trust_remote_code=trust_remote_code))
    return PlanningTime(planner, work, speeds)


def _plan(source: SourceModel, choice: str, embedding: str, head: str) -> OutputPlan:
    """The plan that `quantize` makes of the same words."""
    of_embedding, of_head = (None if word == KEPT else Choice.parse(word) for word in (embedding, head))
    return uniform_plan(source, Choice.parse(choice), of_embedding, of_head)


def _now(source: SourceModel) -> Now:
    checkpoint = source.checkpoint
    index = [path for path in checkpoint.folder.glob("*.safetensors.index.json") if path.is_file()]
    return Now(
        weights_bytes=sum(info.nbytes for info in checkpoint.tensors.values()),
        disk_bytes=sum(path.stat().st_size for path in (*checkpoint.files, *index)),
        tensors=len(checkpoint.tensors),
        files=len(checkpoint.files),
        layers=len(source.layers),
        blocks=source.block_count,
    )


def _row(plan: OutputPlan) -> Row:
    settings = plan.settings
    as_it_is = all(planned.choice.kept for planned in plan.layers)
    return Row(
        choice="as it is" if as_it_is else settings["choice"],
        embedding=settings["embedding"],
        head=settings["head"],
        weights_bytes=plan.weights_bytes,
        disk_bytes=plan.disk_bytes,
        stored_bits=plan.stored_bits,
        code_bits=plan.code_bits,
    )


def _kept(source: SourceModel, plan: OutputPlan) -> tuple[Kept, ...]:
    """Reasons in order of their bytes; layers that a plan keeps are among them."""
    found: dict[str, list[int]] = defaultdict(list)
    for tensor in plan.kept:
        found[tensor.reason].append(source.checkpoint.tensors[tensor.tensor].nbytes)
    for planned in plan.layers:
        if planned.choice.kept:
            kind = "embedding and head, one matrix" if planned.layer.kind == "tied" else planned.layer.kind
            found[planned.note or f"{kind}: kept as it is, as asked"].append(planned.nbytes)
    kept = [Kept(reason, len(sizes), sum(sizes)) for reason, sizes in found.items()]
    return tuple(sorted(kept, key=lambda entry: -entry.nbytes))


def _fallbacks(plans: Iterable[tuple[str, OutputPlan]]) -> tuple[Fallback, ...]:
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for text, plan in plans:
        for planned in plan.layers:
            if planned.note:
                found[text, planned.note].append(planned.layer.name)
    return tuple(Fallback(text, note, len(names), names[0]) for (text, note), names in found.items())


def _stages(work: Workload, speeds: Speeds | None, planning: PlanningTime | None) -> tuple[Stage, ...]:
    peaks, base = stage_peaks(work), memory_now()
    seconds = stage_seconds(work, speeds) if speeds else {}
    if planning:  # the ranges of a plan are searched, those of the choice that stages are forecast for are not
        seconds["quantize"] += planning.searching()
    written = {"quantize": work.plan.disk_bytes}
    return tuple(
        Stage(name, base + ram, device, written.get(name, 0), 0, seconds.get(name))
        for name, (ram, device) in peaks.items()
    )


def _speeds(work: Workload) -> Speeds:
    """At the shape of the linear that has most weights, or of the embedding where no block has a linear."""
    planned = max((entry for block in work.blocks for entry in block), key=weights, default=None)
    planned = planned or work.plan.layers[0]
    kind = Kind(planned.layer.shape, planned.layer.dtype, planned.choice, work.table[0])
    return measure_speeds(kind, work.device, work.dtype)
