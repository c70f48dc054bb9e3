"""The data that the package carries: complete, found by name, and what its sources say."""

import importlib.util
import os
from pathlib import Path

import pytest

from bitbudget.data import default_text_file, demo_model_folder, resolve_model

BUILDER = Path(__file__).resolve().parents[2] / "scripts" / "build_data.py"


def test_demo_is_the_packaged_model_in_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_model("demo") == str(demo_model_folder())
    assert resolve_model("./demo") == "./demo"
    assert resolve_model("some/model") == "some/model"


def test_the_demo_model_is_complete() -> None:
    present = {path.name for path in demo_model_folder().iterdir()}
    assert present >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.mark.shared
def test_the_builder_gives_the_packaged_bytes(tmp_path: Path, shared_folder: Path) -> None:
    specification = importlib.util.spec_from_file_location("build_data", BUILDER)
    assert specification and specification.loader
    builder = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(builder)
    builder.build(shared_folder, tmp_path)
    assert (tmp_path / "books.jsonl").read_bytes() == default_text_file().read_bytes()
    for name in builder.MODEL_FILES:
        assert (tmp_path / "books-6m" / name).read_bytes() == (demo_model_folder() / name).read_bytes()
        assert os.access(demo_model_folder() / name, os.R_OK)
