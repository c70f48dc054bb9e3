"""The models of these benchmarks by name: `demo`, `twin` (planted when asked for), or a folder."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bitbudget.models.source import SourceModel
from bitbudget.pipeline.api import open_source

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
import planting


@contextmanager
def opened(name: str) -> Iterator[SourceModel]:
    """The model, for as long as the context lasts."""
    if name != "twin":
        yield open_source(name)
        return
    with TemporaryDirectory() as folder:
        yield SourceModel.open(planting.plant(Path(folder) / name))


def described(source: SourceModel) -> dict[str, Any]:
    """What names a model in results: its class, and the sha256 of its files of weights."""
    hashes = {file.name: sha256(file.read_bytes()).hexdigest() for file in source.checkpoint.files}
    return {"class": type(source.model).__name__, "blocks": source.block_count, "sha256": hashes}
