"""Commands run inside the test process, on a tiny model with text and on the packaged one."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from bitbudget.cli import app
from zoo import make_model

Invoke = Callable[..., Result]


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small gain nothing by threads, which wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """invoke(*arguments, columns=80) runs a command; every argument may be a path."""

    def run(*arguments: object, columns: int = 80) -> Result:
        monkeypatch.setenv("COLUMNS", str(columns))
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture(scope="package")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of three blocks with the demo tokenizer, in bf16 and two shards."""
    return make_model("llama", tmp_path_factory.mktemp("tiny") / "tiny", dtype=torch.bfloat16, shards=2, text=True)


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


@pytest.fixture(scope="package")
def stored(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in int4, verified."""
    output = tmp_path_factory.mktemp("stored") / "out"
    result = CliRunner().invoke(app, ["quantize", str(tiny), "--choice", "int4:g64", "-o", str(output), "--json"])
    assert result.exit_code == 0, result.output
    return output


@pytest.fixture
def damaged(stored: Path, tmp_path: Path) -> Path:
    """A copy of the stored checkpoint that a test may damage."""
    return Path(shutil.copytree(stored, tmp_path / "damaged"))


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """edit_json(path, **entries) replaces entries of a JSON object in a file."""

    def edit(path: Path, **entries: object) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return edit
