"""Quantize: read layer by layer, store by the plan, write shard by shard, then verify what lies on the disk."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitbudget.allocation import Plan
from bitbudget.checkpoint.journal import Journal
from bitbudget.checkpoint.native import FORMAT_VERSION, NativeConfig
from bitbudget.checkpoint.read import Checkpoint
from bitbudget.checkpoint.write import Shard, ShardWriter, index_json, write_atomic
from bitbudget.errors import InputError, OutputError
from bitbudget.models.layers import UNUSED
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.card import model_card
from bitbudget.pipeline.files import OtherFiles
from bitbudget.pipeline.output import OutputPlan, PlannedLayer
from bitbudget.pipeline.plans import decision
from bitbudget.pipeline.prepare import Preparation
from bitbudget.pipeline.progress import Progress, stage
from bitbudget.pipeline.record import RECORD_NAME, REQUEST, as_texts
from bitbudget.pipeline.standing import refuse_occupied
from bitbudget.pipeline.versions import versions
from bitbudget.pipeline.work import fingerprint, source_files, source_hashes

FINITE_PIECE = 2**22  # values looked at in one go


def prepare_output(output: Path, plan: OutputPlan) -> None:
    """Make the folder, or accept it if it is empty or an unfinished run of ours.

    Raises:
        OutputError: something else is in it, it cannot be written, or the disk is too small.
    """
    refuse_occupied(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"The output folder {output} cannot be made ({error.strerror}). Give another one with -o."
        ) from error
    done = sum(path.stat().st_size for path in output.glob("*.safetensors"))
    free = shutil.disk_usage(output).free
    if plan.disk_bytes - done > free:
        raise OutputError(
            f"The checkpoint takes {plan.disk_bytes:,} bytes, and {output} has {free:,} bytes free. Nothing was written. "
            "Make room or give another folder with -o."
        )


@dataclass(frozen=True)
class Writing:
    """What is written and what the record says of it.

    name: what the record calls the source; text: the text's entry; preparation: what is done to weights before they are
    rounded; decision: the plan that was solved (None: choices that the user named); extra: further entries of the record;
    request: settings by which the same command is known again (see `pipeline.request`).
    """

    plan: OutputPlan
    name: str
    text: dict[str, Any]
    preparation: Preparation = field(default_factory=Preparation)
    decision: Plan | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    request: dict[str, Any] = field(default_factory=dict)


def write_checkpoint(source: SourceModel, writing: Writing, output: Path, progress: Progress) -> dict[str, Any]:
    """Write every shard that the journal does not hold, the other files, and last config.json; returns the record.

    The folder cannot be loaded before config.json is there, so an interrupted run is never mistaken for a finished one.
    """
    plan = writing.plan
    prepare_output(output, plan)
    hashes: dict[str, str] = {}
    with Journal.open(output, run_inputs(source, writing)) as journal:
        with stage(progress, "quantize", _bytes(source, plan.shards, plan)) as running:
            for shard in plan.shards:
                if shard.filename not in journal.finished:
                    journal.record(shard.filename, _write_shard(source, writing, shard, output, running))
                else:
                    running.advance(_bytes(source, (shard,), plan))
                hashes |= journal.finished[shard.filename]
        record = _finish(source, writing, output, hashes)
        journal.close_and_remove()
    return record


def _write_shard(
    source: SourceModel, writing: Writing, shard: Shard, output: Path, progress: Progress
) -> dict[str, str]:
    """Hashes of the shard's tensors; those of the source's tensors stand under `source/<name>`."""
    hashes: dict[str, str] = {}
    wanted = {spec.name for spec in shard.specs}
    plan, preparation = writing.plan, writing.preparation
    layers = plan.by_tensor
    unused = {tensor.tensor for tensor in plan.kept if tensor.reason == UNUSED}
    with ShardWriter(output, shard) as writer:
        for origin in _origins(plan, shard):
            tensor = source.checkpoint.read(origin)
            if origin not in unused:
                _refuse_not_finite(source, origin, tensor)
            planned = layers.get(origin)
            if planned is None or planned.choice.kept:
                stored = {origin: preparation.kept(origin, tensor)}
            else:
                stored = _store(planned, tensor, preparation)
            if stored.get(origin) is not tensor:
                hashes[f"source/{origin}"] = tensor_sha256(tensor)
            for name in sorted(stored.keys() & wanted):
                hashes[name] = writer.write(name, stored[name])
            progress.advance(tensor.nbytes)
    return hashes


def _store(planned: PlannedLayer, tensor: Tensor, preparation: Preparation) -> dict[str, Tensor]:
    """The stored tensors of a layer under their names in the file."""
    weight = preparation.stored(planned, tensor)
    return {f"{planned.layer.name}.{name}": value for name, value in weight.tensors().items()}


def _origins(plan: OutputPlan, shard: Shard) -> list[str]:
    """Source tensors that a shard's tensors come from, in the source's order."""
    made_from = {spec.name: planned.layer.tensor for planned in plan.layers for spec in planned.specs()}
    return list(dict.fromkeys(made_from.get(spec.name, spec.name) for spec in shard.specs))


def _bytes(source: SourceModel, shards: Iterable[Shard], plan: OutputPlan) -> int:
    return sum(source.checkpoint.tensors[name].nbytes for shard in shards for name in _origins(plan, shard))


def _refuse_not_finite(source: SourceModel, name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        return
    # In pieces: isfinite makes temporaries several times the size of a 16-bit tensor.
    pieces = tensor.view(-1).split(FINITE_PIECE)
    broken = [int((~torch.isfinite(piece)).sum()) for piece in pieces]
    if not any(broken):
        return
    number = next(index for index, count in enumerate(broken) if count)
    first = number * FINITE_PIECE + int((~torch.isfinite(pieces[number])).nonzero()[0])
    place = [int(index) for index in torch.unravel_index(torch.tensor(first), tensor.shape)]
    raise InputError(
        f"{source.checkpoint.tensors[name].file}: the weight {name} holds {sum(broken)} values that are NaN or infinite, the first "
        f"at {place}. A model with such weights cannot be quantized; download it again or repair the tensor."
    )


def run_inputs(source: SourceModel, writing: Writing) -> dict[str, str]:
    """Everything that the output depends on, by name: the request, weights by header, size and modification time, what is
    written, scales, text, versions.
    """
    return {
        **as_texts(writing.request),
        **source_hashes(source),
        **source_files(source),
        "text": writing.text["sha256"],
        "text's name": writing.text["name"],
        "output": fingerprint(writing.plan.to_dict()),
        "scales": writing.preparation.fold.fingerprint,
        **{f"version of {package}": number for package, number in versions().items()},
    }


def _finish(source: SourceModel, writing: Writing, output: Path, hashes: dict[str, str]) -> dict[str, Any]:
    """Index, other files, record, and last the config that makes the folder a model."""
    plan = writing.plan
    if len(plan.shards) > 1:
        write_atomic(output / "model.safetensors.index.json", index_json(plan.shards))
    others = OtherFiles.of(source.folder)
    written = Checkpoint.open(output)
    plan = plan.as_written({name: info.dtype for name, info in written.tensors.items()})
    config_bytes = (source.folder / "config.json").read_bytes()
    of_source = {key.removeprefix("source/"): value for key, value in hashes.items() if key.startswith("source/")}
    inputs = {"config": sha256(config_bytes).hexdigest(), "text": writing.text["sha256"]}
    changed = writing.preparation.fold.reasons
    stored = {planned.layer.tensor for planned in plan.layers if not planned.choice.kept}
    record = {
        "format_version": FORMAT_VERSION,
        "versions": versions(),
        "source": {"name": writing.name, "config_sha256": inputs["config"], "tensors": of_source},
        "plan": (writing.decision or decision(plan, inputs)).to_dict(),
        "output": plan.to_dict() | {"scaled": {name: why for name, why in changed.items() if name not in stored}},
        "text": writing.text,
        **({REQUEST: writing.request} if writing.request else {}),
        "tensors": {spec.name: hashes[spec.name] for shard in plan.shards for spec in shard.specs},
        "other_files": {"copied": others.copy(source.folder, output), "left_out": others.left_out},
        **writing.extra,
    }
    write_record(output, record)
    config = json.loads(config_bytes)
    if not config.get("dtype") and not config.get("torch_dtype"):
        # dtype="auto" would take the first float tensor of the file, which may now be a scale
        config["dtype"] = str(source.dtype).removeprefix("torch.")
    config["quantization_config"] = NativeConfig(plan.stored_choices).to_dict()
    write_atomic(output / "config.json", json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n")
    return record


def write_record(output: Path, record: dict[str, Any]) -> None:
    """bitbudget.json and the model card made from it: last what tells that both are written."""
    write_atomic(output / "README.md", model_card(record).encode())
    write_atomic(output / RECORD_NAME, json.dumps(record, indent=1, ensure_ascii=False).encode() + b"\n")


def tensor_sha256(tensor: Tensor) -> str:
    """Of the bytes of a contiguous tensor in main memory."""
    return sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()
