"""Scores: one streamed backward pass of the folded model over a wave of sequences; every layer's rounding errors by every choice
are contracted with its gradients, and p_d[choice, row] is kept on disk.

A layer's file appears when its wave is finished; a killed pass goes on at the block behind the last one whose gradient it kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from bitbudget.calibration.tokens import TokenSequence, fingerprint
from bitbudget.checkpoint.scratch import read_tensors, write_tensors
from bitbudget.heap import return_freed_memory
from bitbudget.methods.recipe import Labels
from bitbudget.models.gradients import Factors, GradientStream, Logits, LogitsGradient
from bitbudget.models.layers import Layer
from bitbudget.models.stream import BlockStream, States
from bitbudget.pipeline.calibrate import Calibration, HiddenStates
from bitbudget.pipeline.offers import Offer
from bitbudget.pipeline.progress import Progress, stage
from bitbudget.rounding import Fitted, fit_all
from bitbudget.scoring import contract, contract_rows

FACTOR_BYTES = 288 << 20  # of inputs and gradients of a block's layers that are in memory at a time
SEED = 0
DONE = "done"  # the mark of a wave whose scores are all there
HALF = "head of the tied matrix"  # waits for the embedding's half
LOGITS = 2**23  # that drawing labels passes over at a time: 32 MiB of fp32, a few times


def logits_gradient(labels: Labels, sequence: TokenSequence, number: int) -> LogitsGradient:
    """∂L/∂logits of the summed cross-entropy: p − e_label, with the text's labels or with labels drawn from p.

    number: of the sequence among all; it seeds the drawing.
    """

    def write(logits: Logits, gradient: Logits) -> None:
        own, device = sequence.labels.to(logits.device), logits.device
        generator = torch.Generator(device=device).manual_seed(SEED + number) if labels == "sampled" else None
        step = max(1, LOGITS // logits.shape[1])
        for start in range(0, len(own), step):
            few = slice(start, start + step)
            probabilities = torch.softmax(logits[few].float(), -1)
            drawn = own[few] if generator is None else torch.multinomial(probabilities, 1, generator=generator)[:, 0]
            probabilities[torch.arange(len(drawn), device=device), drawn] -= 1
            gradient[few] = probabilities.to(gradient.dtype)

    return write


@dataclass(frozen=True)
class Wave:
    """Sequences that go through the model together. first: the number of the first of them among all."""

    sequences: tuple[TokenSequence, ...]
    first: int

    @property
    def name(self) -> str:
        return f"{self.first}-{self.first + len(self.sequences)}"

    @property
    def folder(self) -> str:
        """Where its files are kept. The name alone would take another text's sequences for these."""
        return f"{self.name}-{fingerprint(self.sequences)[:12]}"

    @property
    def tokens(self) -> list[int]:
        """Scored tokens of every sequence."""
        return [sequence.scored for sequence in self.sequences]


class Scoring:
    """The backward pass of one wave; `stream` streams the folded model."""

    def __init__(
        self, stream: BlockStream, calibration: Calibration, offers: Sequence[Offer], labels: Labels, folder: str
    ) -> None:
        self.stream = stream
        self.backward = GradientStream(stream)
        self.calibration = calibration
        self.offers = {offer.layer.name: offer for offer in offers}
        self.labels = labels
        self.folder = folder

    def path(self, wave: Wave, name: str) -> Path:
        return self.calibration.work.path("scores", self.folder, wave.folder, f"{name}.safetensors")

    def finished(self, wave: Wave) -> bool:
        """Whether the scores of all layers are there. A file that somebody removed is measured again, whatever the mark says."""
        wanted = [name for name, offer in self.offers.items() if offer.stored]
        return self._mark(wave).is_file() and all(self.path(wave, name).is_file() for name in wanted)

    def finish(self, wave: Wave) -> None:
        """Marks the scores of a wave as finished."""
        self.calibration.work.finish("scores", self.folder, wave.folder, DONE)

    def forget(self, wave: Wave) -> None:
        """Removes what only an unfinished wave needs."""
        self.calibration.work.remove("gradients", self.folder, wave.folder)
        self.path(wave, HALF).unlink(missing_ok=True)

    def _mark(self, wave: Wave) -> Path:
        return self.calibration.work.path("scores", self.folder, wave.folder, DONE)

    def run(self, wave: Wave, kept: HiddenStates, progress: Progress) -> None:
        """All layers of the model; files that are there are not made again."""
        states = self.stream.start([sequence.ids for sequence in wave.sequences])
        states.hidden.clear()  # what enters each block was kept
        blocks = self.stream.block_count
        with stage(progress, f"score: backward, sequences {wave.name}", blocks + 2) as running:
            done = next((index for index in range(blocks + 1) if self._gradients(wave, index).has(index)), None)
            if done is None:
                self._head(wave, states, kept)
                done = blocks
            running.advance(1 + blocks - done)
            for index in reversed(range(done)):
                self._block(wave, index, states, kept)
                running.advance(1)
            self._embedding(wave, states)
            running.advance(1)

    def _gradients(self, wave: Wave, index: int) -> HiddenStates:
        """Gradients at what enters a block are kept as hidden states are, two blocks at a time."""
        return HiddenStates(
            self.calibration.work.path("gradients", self.folder, wave.folder), [len(own.ids) for own in wave.sequences]
        )

    def _keep(self, wave: Wave, index: int, gradients: list[Tensor]) -> None:
        kept = self._gradients(wave, index)
        kept.save(index, gradients)
        kept.path(index + 1).unlink(missing_ok=True)

    def _fits(self, layer: Layer, weight: Tensor) -> list[Fitted]:
        gram = self.calibration.gram(layer)
        return fit_all(weight, [planned.choice for planned in self.offers[layer.name].stored], gram)

    def _weight(self, layer: Layer) -> Tensor:
        """[out, in], of the loaded module."""
        weight = self.stream.model.get_submodule(layer.module).weight.detach()
        return weight.T if layer.transposed else weight

    def _block(self, wave: Wave, index: int, states: States, kept: HiddenStates) -> None:
        layers = [offer.layer for offer in self.offers.values() if offer.layer.block == index]
        hidden = kept.load(index, self.stream.device)
        gradients = self._gradients(wave, index).load(index + 1, self.stream.device)
        found: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
        with self.stream.loaded(index):
            fits = {layer.name: self._fits(layer, self._weight(layer)) for layer in layers}
            for part in _parts(wave, sum(sum(layer.shape) for layer in layers)):
                factors: dict[str, list[Factors]] = {layer.name: [] for layer in layers}
                for number in part:
                    gradients[number], own = self.backward.through_block(
                        index, states, number, hidden[number], gradients[number], layers
                    )
                    for layer in layers:
                        factors[layer.name].append(own.get(layer.name) or _none(layer, gradients[number]))
                for layer in layers:
                    if fits[layer.name]:
                        found[layer.name].append(contract(fits[layer.name], factors[layer.name], layer.shape))
                del factors
                return_freed_memory()
        self.stream.free()
        for name, pieces in found.items():
            if pieces:
                self._save(wave, name, torch.cat(pieces, dim=1))
        self._keep(wave, index, gradients)
        del fits, hidden, gradients
        return_freed_memory()

    def _head(self, wave: Wave, states: States, kept: HiddenStates) -> None:
        """Through the final norm and the head, whose own layer is contracted on the way."""
        blocks = self.stream.block_count
        hidden = kept.load(blocks, self.stream.device)
        head = next((o.layer for o in self.offers.values() if o.layer.kind in ("head", "tied")), None)
        fits: list[Fitted] | None = None
        pieces, gradients = [], []
        for number, sequence in enumerate(wave.sequences):
            wanted = logits_gradient(self.labels, sequence, wave.first + number)
            entering, factors = self.backward.from_logits(
                states, number, hidden[number], sequence.positions, wanted
            )
            gradients.append(entering)
            if head is not None and factors is not None and self.offers[head.name].stored:
                # The head's module: that of a tied matrix is the embedding, of which nothing is loaded.
                fits = fits or self._fits(head, self.stream.model.get_output_embeddings().weight.detach())
                pieces.append(contract(fits, [factors], head.shape))
            return_freed_memory()
        self.stream.free()
        if head is not None and pieces:
            found = torch.cat(pieces, dim=1)
            if head.kind == "tied":
                write_tensors(self.path(wave, HALF), {"p": found})
            else:
                self._save(wave, head.name, found)
        self._keep(wave, blocks, gradients)

    def _embedding(self, wave: Wave, states: States) -> None:
        table = next((o.layer for o in self.offers.values() if o.layer.kind in ("embedding", "tied")), None)
        if table is None or not self.offers[table.name].stored or self.path(wave, table.name).is_file():
            return
        gradients = self._gradients(wave, 0).load(0, self.stream.device)
        rows = [self.backward.at_embedding(states, number, own) for number, own in enumerate(gradients)]
        self.stream.free()
        weight = self.stream.source.checkpoint.read(table.tensor).to(self.stream.device)
        found = contract_rows(self._fits(table, weight), rows, table.shape)
        if table.kind == "tied":  # one matrix: what both uses say of a cell is added before anything is squared
            found = found + read_tensors(self.path(wave, HALF))["p"]
        self._save(wave, table.name, found)

    def _save(self, wave: Wave, name: str, p: Float[Tensor, "choices sequences rows"]) -> None:
        write_tensors(self.path(wave, name), _packed(p))


def _none(layer: Layer, like: Tensor) -> Factors:
    """Of a layer that was not called for this sequence."""
    return Factors(like.new_zeros(1, layer.shape[1]), like.new_zeros(1, layer.shape[0]))


def _parts(wave: Wave, features: int) -> Iterator[list[int]]:
    """As many sequences at a time as keep inputs and gradients of a block's layers within the limit."""
    part: list[int] = []
    held = 0
    for number, sequence in enumerate(wave.sequences):
        size = 4 * features * len(sequence.ids)
        if part and held + size > FACTOR_BYTES:
            yield part
            part, held = [], 0
        part.append(number)
        held += size
    yield part


def _packed(p: Float[Tensor, "choices sequences rows"]) -> dict[str, Tensor]:
    """Row values in fp16 with a scale per choice; Σ p and Σ p² over all rows as they were, in fp64, which is all that the default
    score reads.
    """
    scale = p.abs().amax((1, 2)).clamp(min=torch.finfo(torch.float32).tiny)
    wide = p.double()
    return {
        "rows": (p / scale[:, None, None]).half(),
        "scale": scale,
        "sums": wide.sum(-1),
        "squares": wide.square().sum(-1),
    }
