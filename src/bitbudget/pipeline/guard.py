"""The guard: the plan, the best uniform plan and a hand recipe are compared by real KL on text that neither calibration nor scores
used. Original and candidates go through the blocks side by side; no logits are stored. The best is kept and named.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bitbudget.calibration.tokens import TokenSequence
from bitbudget.heap import return_freed_memory
from bitbudget.models.source import SourceModel
from bitbudget.models.stream import BlockStream, CheckpointWeights, States
from bitbudget.pipeline.measure import Sums, add_window, ratio_error, summary, waves_of
from bitbudget.pipeline.output import PlannedLayer
from bitbudget.pipeline.prepare import PlannedWeights, Preparation
from bitbudget.pipeline.progress import Progress, stage
from bitbudget.rounding import Fitted


@dataclass(frozen=True)
class Candidate:
    """One way to meet the budget. predicted: KL by the scores, None where there are none."""

    name: str
    layers: tuple[PlannedLayer, ...]
    preparation: Preparation
    predicted: float | None

    @property
    def nbytes(self) -> int:
        """Bytes of its layers."""
        return sum(planned.nbytes for planned in self.layers)


@dataclass(frozen=True)
class Judged:
    """A candidate as measured. difference: its KL minus that of the first candidate, with its paired standard error."""

    name: str
    nbytes: int
    predicted: float | None
    kl: float
    kl_se: float | None
    perplexity: float
    difference: float | None
    difference_se: float | None

    def to_dict(self) -> dict[str, Any]:
        kept = ("name", "predicted", "kl", "kl_se", "perplexity", "difference", "difference_se")
        return {"bytes": self.nbytes, **{name: getattr(self, name) for name in kept}}


def judge(
    source: SourceModel,
    candidates: Sequence[Candidate],
    sequences: Sequence[TokenSequence],
    where: tuple[torch.device, torch.dtype],
    progress: Progress,
) -> tuple[Judged, ...]:
    """KL of every candidate from the original, in nats per token, all on the same text, in the order given."""
    documents = by_document(source, candidates, sequences, where, progress)
    first = documents[candidates[0].name]
    return tuple(_judged(candidate, documents[candidate.name], first) for candidate in candidates)


def by_document(
    source: SourceModel,
    candidates: Sequence[Candidate],
    sequences: Sequence[TokenSequence],
    where: tuple[torch.device, torch.dtype],
    progress: Progress,
) -> dict[str, dict[int, Sums]]:
    """Candidate -> document -> what was measured there."""
    original = BlockStream(source, CheckpointWeights(source.checkpoint), *where)
    tables: dict[str, Fitted] = {}
    streams = {
        candidate.name: BlockStream(source, _weights(source, candidate, tables), *where) for candidate in candidates
    }
    documents: dict[str, dict[int, Sums]] = {name: defaultdict(Sums) for name in streams}
    heads = {candidate.name: _head(candidate) for candidate in candidates}
    for wave in waves_of(sequences, original):
        every = {"": original, **streams}
        states = {name: stream.start([sequence.ids for sequence in wave]) for name, stream in every.items()}
        tables.clear()
        _through_blocks(every, states, progress)
        _compare(every, heads, states, wave, documents, progress)
    return documents


def best(judged: Sequence[Judged]) -> Judged:
    """The one of least KL; the first among equals. One without a number (its logits overflow) loses against all others."""
    return min(judged, key=lambda one: math.inf if math.isnan(one.kl) else one.kl)


def _weights(source: SourceModel, candidate: Candidate, tables: dict[str, Fitted]) -> PlannedWeights:
    planned = {entry.layer.tensor: entry for entry in candidate.layers}
    return PlannedWeights(source, planned, candidate.preparation, tables)


def _head(candidate: Candidate) -> str:
    """Of the output head: candidates with the same one share it in memory."""
    return next((str(entry.choice) for entry in candidate.layers if entry.layer.kind in ("head", "tied")), "")


def _through_blocks(
    streams: Mapping[str, BlockStream], states: Mapping[str, States], progress: Progress
) -> None:
    blocks = next(iter(streams.values())).block_count
    with stage(progress, f"guard: {len(streams) - 1} candidates beside the original, block by block", blocks) as running:
        for index in range(blocks):
            for name, stream in streams.items():
                stream.run_block(index, states[name])
                return_freed_memory()
            running.advance(1)


def _compare(
    streams: Mapping[str, BlockStream],
    heads: Mapping[str, str],
    states: Mapping[str, States],
    wave: Sequence[TokenSequence],
    documents: Mapping[str, dict[int, Sums]],
    progress: Progress,
) -> None:
    """Final norm and head, a sequence at a time. One head is in memory beside the original's, for all candidates that have it."""
    sharing: dict[str, list[str]] = defaultdict(list)
    for name, head in heads.items():
        sharing[head].append(name)
    original = streams[""]
    with stage(progress, "guard: compare", len(sharing) * len(wave)) as running, torch.no_grad():
        for names in sharing.values():
            for number, sequence in enumerate(wave):
                expected = original.finish(states[""], number)
                for name in names:
                    logits = streams[names[0]].finish(states[name], number)
                    add_window(documents[name][sequence.document], sequence, logits, expected)
                    del logits
                running.advance(1)
            streams[names[0]].free()
        original.free()


def _judged(candidate: Candidate, own: Mapping[int, Sums], first: Mapping[int, Sums]) -> Judged:
    measured = summary(list(own.values()), (0, 0), compared=True)
    assert measured.kl is not None, "measured against the original"
    difference = difference_se = None
    if own is not first:
        apart = [sums.kl - first[number].kl for number, sums in own.items()]
        tokens = [sums.tokens for sums in own.values()]
        difference, difference_se = sum(apart) / sum(tokens), ratio_error(apart, tokens)
    return Judged(
        candidate.name,
        candidate.nbytes,
        candidate.predicted,
        measured.kl,
        measured.kl_se,
        measured.perplexity,
        difference,
        difference_se,
    )
