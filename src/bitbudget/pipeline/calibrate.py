"""Calibrate: one streamed forward pass of the original model. It keeps what enters every block, for the backward pass; the
Gram matrices of all layers' inputs, for searched ranges; and AWQ's scales.

Each block's files are written when the block is done, so a killed pass goes on at the next block.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bitbudget.calibration.gram import GroupGram, gram_sum
from bitbudget.calibration.tokens import TokenSequence
from bitbudget.checkpoint.atomic import make_folder
from bitbudget.checkpoint.scratch import read_tensors, write_tensors
from bitbudget.heap import return_freed_memory
from bitbudget.methods.recipe import Recipe
from bitbudget.models.gradients import captured_inputs
from bitbudget.models.layers import Layer
from bitbudget.models.source import SourceModel
from bitbudget.models.stream import BlockStream, States
from bitbudget.pipeline.output import PlannedLayer, plan_layer
from bitbudget.pipeline.progress import Progress, stage
from bitbudget.pipeline.work import Work
from bitbudget.rounding import fit
from bitbudget.storage import Choice
from bitbudget.transforms.awq import Awq, search_block
from bitbudget.transforms.fold import Fold
from bitbudget.transforms.pairs import PairFinder

CALIBRATED = "calibrated"  # the mark of a finished calibration
HEAD_TOKENS = 2048  # from which the Gram matrix of the head's input is taken: its logits are computed on the way


@dataclass(frozen=True)
class Calibration:
    """What was measured once for a model. fold: the scales of all blocks, folded into the files' tensors."""

    work: Work
    fold: Fold

    def gram(self, layer: Layer, fold: Fold | None = None) -> GroupGram | None:
        """Of the input that a layer gets in a folded model (by default by this calibration's own fold); None for an embedding,
        and for a layer that never ran.
        """
        if layer.kind == "embedding":
            return None
        block = "head" if layer.block is None else str(layer.block)
        blocks = read_tensors(self.work.path("grams", f"{block}.safetensors"), [layer.name]).get(layer.name)
        return None if blocks is None else GroupGram(blocks).divided((fold or self.fold).column_factor(layer))


class HiddenStates:
    """What enters every block (number of blocks: the final norm), all sequences of a wave joined, one file a block."""

    def __init__(self, folder: Path, lengths: Sequence[int]) -> None:
        self.folder = folder
        self.lengths = list(lengths)

    def path(self, block: int) -> Path:
        return self.folder / f"{block}.safetensors"

    def has(self, block: int) -> bool:
        return self.path(block).is_file()

    def complete(self, blocks: int) -> bool:
        """Whether all of them are there; a killed removal leaves some."""
        return all(self.has(block) for block in range(blocks + 1))

    def save(self, block: int, hidden: Sequence[Tensor]) -> None:
        """hidden: [1, tokens, width] of every sequence."""
        write_tensors(self.path(block), {"hidden": torch.cat([state[0] for state in hidden]).cpu()})

    def load(self, block: int, device: torch.device) -> list[Tensor]:
        """[1, tokens, width] of every sequence."""
        joined = read_tensors(self.path(block))["hidden"]
        return [state.unsqueeze(0).to(device) for state in joined.split(self.lengths)]


def forward_wave(
    stream: BlockStream, sequences: Sequence[TokenSequence], kept: HiddenStates, progress: Progress, name: str
) -> None:
    """The forward pass alone, for sequences after the first wave: keeps what enters every block."""
    states = _started(stream, sequences, kept)
    with stage(progress, name, stream.block_count) as running:
        for index in range(stream.block_count):
            if not kept.has(index + 1):
                states.hidden, states.next_block = kept.load(index, stream.device), index
                stream.run_block(index, states)
                kept.save(index + 1, states.hidden)
                return_freed_memory()
            running.advance(1)


def calibrate(
    stream: BlockStream,
    sequences: Sequence[TokenSequence],
    kept: HiddenStates,
    settings: tuple[Recipe, Awq],
    work: Work,
    progress: Progress,
) -> Calibration:
    """The forward pass of the first wave, with everything that is measured once. settings: recipe, AWQ's search."""
    recipe, awq = settings
    states = _started(stream, sequences, kept)
    search = ScaleSearch(stream, awq, _references(stream.source, recipe)) if recipe.scaling else None
    with stage(progress, "calibrate: inputs and scales, block by block", stream.block_count + 1) as running:
        for index in range(stream.block_count):
            if not kept.has(index + 1) or not all(path.is_file() for path in _measured(work, index)):
                states.hidden, states.next_block = kept.load(index, stream.device), index
                pass_block(stream, states, index, search, work)
                kept.save(index + 1, states.hidden)
                return_freed_memory()
            running.advance(1)
        if not _head(work).is_file():
            states.hidden = kept.load(stream.block_count, stream.device)
            _head_gram(stream, states, work)
        running.advance(1)
    work.finish(CALIBRATED)
    return Calibration(work, read_fold(stream.source, work))


def is_calibrated(work: Work, blocks: int) -> bool:
    """Whether everything is there. A file that somebody removed is measured again, whatever the mark says."""
    files = [path for index in range(blocks) for path in _measured(work, index)]
    return work.path(CALIBRATED).is_file() and all(path.is_file() for path in (*files, _head(work)))


def _measured(work: Work, index: int) -> tuple[Path, Path]:
    """Files of a block: Gram matrices, scales."""
    return work.path("grams", f"{index}.safetensors"), work.path("scales", f"{index}.safetensors")


def _head(work: Work) -> Path:
    return work.path("grams", "head.safetensors")


def read_fold(source: SourceModel, work: Work) -> Fold:
    """The scales of all blocks together."""
    fold = Fold.none()
    for index in range(source.block_count):
        fold = fold.then(Fold.load(_measured(work, index)[1]))
    return fold


def _references(source: SourceModel, recipe: Recipe) -> dict[str, Choice]:
    """The reference choice of every linear that it fits."""
    planned = (plan_layer(layer, Choice.parse(recipe.reference)) for layer in source.layers if layer.kind == "linear")
    return {entry.layer.name: entry.choice for entry in planned}


class ScaleSearch:
    """AWQ's search, block by block, at a choice for every layer. Ranges are searched after scales: here they are minimum and
    maximum, for what a range loses without its inputs' Gram matrix says little of what it will lose with it.
    """

    def __init__(self, stream: BlockStream, awq: Awq, choices: Mapping[str, Choice]) -> None:
        self._stream = stream
        self._awq = awq
        self._choices = {name: _widest(choice) for name, choice in choices.items()}
        self._pairs = PairFinder(stream)

    def run(self, states: States, index: int) -> Fold:
        """The scales of a loaded block, whose original inputs `states` hold."""
        groups, _ = self._pairs.find(states, index)
        fold, _ = search_block(self._awq, self._stream, states, index, groups, self._quantized)
        return fold

    def _quantized(self, name: str, weight: Tensor) -> Tensor:
        choice = self._choices.get(name)
        return weight if choice is None or choice.kept else fit(weight, choice).decoded(weight.dtype)


def _widest(choice: Choice) -> Choice:
    """With the range of every group its minimum and maximum."""
    parts = (replace(part, grid=replace(part.grid, range="minmax")) for part in choice.dense)
    return replace(choice, dense=tuple(parts))


def pass_block(stream: BlockStream, states: States, index: int, search: ScaleSearch | None, work: Work) -> None:
    """Searches the scales of a block, then moves every sequence through it and gathers the Gram matrices of its layers."""
    layers = [layer for layer in stream.source.layers if layer.block == index]
    modules = {layer.name: stream.model.get_submodule(layer.module) for layer in layers}
    sums: dict[str, Tensor] = {}
    tokens = 0
    with torch.no_grad(), stream.loaded(index):
        fold = Fold.none() if search is None else search.run(states, index)
        with captured_inputs(modules) as seen:
            for sequence in range(len(states.hidden)):
                states.hidden[sequence] = stream.call(index, states, sequence)
                tokens += states.hidden[sequence].shape[1]
                _add(sums, seen)
    stream.free()
    grams, scales = _measured(work, index)
    write_tensors(grams, {name: (total / tokens).cpu() for name, total in sums.items()})
    make_folder(scales.parent)
    fold.save(scales)


def _add(sums: dict[str, Tensor], seen: Mapping[str, list[Tensor]]) -> None:
    """Adds the inputs seen, and forgets them. Layers that share an input share its sum."""
    done: dict[tuple[int, ...], Tensor] = {}
    for name, calls in seen.items():
        for inputs in calls:
            key = (inputs.data_ptr(), *inputs.shape)
            if key not in done:
                done[key] = gram_sum(inputs)
            sums[name] = done[key].clone() if name not in sums else sums[name].add_(done[key])
        calls.clear()


def _head_gram(stream: BlockStream, states: States, work: Work) -> None:
    """Of what the final norm hands to the head, on the first sequences."""
    head = next((layer for layer in stream.source.layers if layer.kind in ("head", "tied")), None)
    module = stream.model.get_output_embeddings()
    if head is None or module is None:
        write_tensors(_head(work), {})
        return
    sums: dict[str, Tensor] = {}
    tokens = 0
    with torch.no_grad(), captured_inputs({head.name: module}) as seen:
        for sequence, hidden in enumerate(states.hidden):
            if tokens >= HEAD_TOKENS:
                break
            stream.finish(states, sequence, hidden)
            tokens += hidden.shape[1]
            _add(sums, seen)
    stream.free()
    write_tensors(_head(work), {name: (total / tokens).cpu() for name, total in sums.items()})


def _started(stream: BlockStream, sequences: Sequence[TokenSequence], kept: HiddenStates) -> States:
    """States before block 0; what enters it is kept too."""
    states = stream.start([sequence.ids for sequence in sequences])
    if not kept.has(0):
        kept.save(0, states.hidden)
    return states


def rescaled(
    stream: BlockStream, sequences: Sequence[TokenSequence], awq: Awq, layers: Sequence[PlannedLayer], progress: Progress
) -> Fold:
    """Scales searched once more, every layer at its own choice, on the first sequences with AWQ's tokens together."""
    few, held = [], 0
    for sequence in sequences:
        if held < awq.tokens:
            few.append(sequence)
            held += len(sequence.ids)
    states = stream.start([sequence.ids for sequence in few])
    search = ScaleSearch(stream, awq, {planned.layer.name: planned.choice for planned in layers})
    fold = Fold.none()
    with stage(progress, "scales once more, at the plan's widths", stream.block_count) as running:
        for index in range(stream.block_count):
            with torch.no_grad(), stream.loaded(index):
                fold = fold.then(search.run(states, index))
            stream.run_block(index, states)
            running.advance(1)
    return fold
