"""Zoo models, each written once per test run, streams of them, and folds with random scales."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import logging

from bitbudget.models.source import SourceModel
from bitbudget.models.stream import BlockStream, CheckpointWeights
from bitbudget.transforms.fold import Fold, FoldedWeights
from bitbudget.transforms.pairs import PairFinder, ScaleGroup
from bitbudget.transforms.scaling import fold_scale
from zoo import VOCABULARY, make_model

logging.disable_progress_bar()

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`zoo(name, **options)` is the folder of that model; folders are shared."""
    written: dict[tuple, Path] = {}

    def folder(name: str, **options: object) -> Path:
        key = (name, *sorted(options.items(), key=str))
        if key not in written:
            written[key] = make_model(name, tmp_path_factory.mktemp(name), **options)
        return written[key]

    return folder


@pytest.fixture
def edited(zoo: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """`edited(name, change, **options)` is a copy whose tensors went through `change`, which alters the dict."""

    def folder(name: str, change: Callable[[dict[str, Tensor]], object], **options: object) -> Path:
        copy = Path(shutil.copytree(zoo(name, **options), tmp_path / name))
        tensors = load_file(copy / "model.safetensors")
        change(tensors)
        save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
        return copy

    return folder


@pytest.fixture(scope="session")
def sequences() -> list[Tensor]:
    """Token ids of several lengths; the window of the zoo is 12."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(VOCABULARY, (length,), generator=generator) for length in (5, 33, 47)]


@pytest.fixture(scope="session")
def stream_of() -> Callable[..., BlockStream]:
    """`stream_of(folder, fold)` runs the model in a folder on the CPU in fp32, folded if a fold is given."""

    def stream(folder: Path, fold: Fold | None = None) -> BlockStream:
        source = SourceModel.open(folder)
        weights = CheckpointWeights(source.checkpoint)
        return BlockStream(source, weights if fold is None else FoldedWeights(weights, fold), CPU, torch.float32)

    return stream


@pytest.fixture(scope="session")
def groups_of() -> Callable[..., list[ScaleGroup]]:
    """`groups_of(stream, sequences)`: the groups of all blocks."""

    def groups(stream: BlockStream, sequences: list[Tensor]) -> list[ScaleGroup]:
        states, finder = stream.start(sequences), PairFinder(stream)
        return [group for index in range(stream.block_count) for group in finder.find(states, index)[0]]

    return groups


@pytest.fixture(scope="session")
def random_fold() -> Callable[..., Fold]:
    """`random_fold(source, groups, spread)`: all groups folded with random scales."""

    def fold(source: SourceModel, groups: list[ScaleGroup], spread: float = 0.7) -> Fold:
        generator = torch.Generator().manual_seed(3)
        whole = Fold.none()
        for group in groups:
            scale = torch.exp(spread * torch.randn(group.channels, generator=generator))
            whole = whole.then(fold_scale(source, group, scale))
        return whole

    return fold
