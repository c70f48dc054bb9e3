"""What quantize writes: bytes as planned, kept tensors bit for bit, the same bytes twice and after an interruption."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import mutants
import pytest
import torch

import zoo
from bitbudget.checkpoint.journal import JOURNAL_NAME
from bitbudget.checkpoint.read import Checkpoint
from bitbudget.errors import InputError, OutputError
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.api import quantize
from bitbudget.pipeline.output import fitted, uniform_plan
from bitbudget.pipeline.progress import Silent
from bitbudget.pipeline.verify import open_folder
from bitbudget.rounding import nearest
from bitbudget.storage import Choice, StoredWeight

CHOICE = "int4:g32"


def contents(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


class Interrupting(Silent):
    """Stops the run after some layers, as Ctrl-C would."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, amount: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_saved_bytes_equal_the_plan(original: Path, finished: Path) -> None:
    source = SourceModel.open(original)
    plan = uniform_plan(
        source, Choice.parse("int8:g32*25%|int3:g32+outliers:1%"), Choice.parse("int4:g32"), None, 300_000
    )
    files = [*finished.glob("*.safetensors"), *finished.glob("*.index.json")]
    assert len(files) > 2
    assert sum(path.stat().st_size for path in files) == plan.disk_bytes
    assert sum(info.nbytes for info in Checkpoint.open(finished).tensors.values()) == plan.weights_bytes
    assert {path.name: path.stat().st_size for path in files if path.suffix == ".safetensors"} == {
        shard.filename: shard.nbytes for shard in plan.shards
    }


def test_stored_layers_are_the_rounded_source_and_the_rest_is_the_source(original: Path, finished: Path) -> None:
    source, written = SourceModel.open(original), Checkpoint.open(finished)
    layers = {layer.tensor: layer for layer in source.layers if layer.kind != "head"}
    for name in source.checkpoint.tensors:
        if name not in layers:
            assert torch.equal(source.checkpoint.read(name), written.read(name)), name
            continue
        text = "int4:g32" if layers[name].kind == "embedding" else "int8:g32*25%|int3:g32+outliers:1%"
        choice = fitted(Choice.parse(text), layers[name].shape)
        assert choice is not None
        expected = nearest(source.checkpoint.read(name), choice)
        found = {key: written.read(f"{layers[name].name}.{key}") for key in expected.tensors()}
        stored = StoredWeight.from_tensors(expected.choice, layers[name].shape, found)
        assert torch.equal(stored.dequantize(), expected.dequantize()), name


def test_two_runs_give_the_same_bytes(original: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        quantize(original, CHOICE, tmp_path / name, verify=False)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("after", [1, 9, 25])
def test_an_interrupted_run_is_continued_to_the_same_bytes(original: Path, tmp_path: Path, after: int) -> None:
    quantize(original, CHOICE, tmp_path / "whole", verify=False, max_shard_bytes=200_000)
    with pytest.raises(KeyboardInterrupt):
        quantize(
            original, CHOICE, tmp_path / "cut", verify=False, max_shard_bytes=200_000, progress=Interrupting(after)
        )
    left = {path.name for path in (tmp_path / "cut").iterdir()}
    assert "config.json" not in left, "an unfinished folder cannot be loaded"
    assert not any(name.endswith(".partial") for name in left)
    with pytest.raises(InputError, match="unfinished run"):
        open_folder(tmp_path / "cut")
    quantize(original, CHOICE, tmp_path / "cut", verify=False, max_shard_bytes=200_000)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_another_choice_does_not_continue_an_interrupted_run(original: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        quantize(original, CHOICE, tmp_path, verify=False, progress=Interrupting(9))
    assert (tmp_path / JOURNAL_NAME).is_file()
    with pytest.raises(OutputError):
        quantize(original, "int3:g32", tmp_path, verify=False)


def test_a_folder_with_other_things_is_left_alone(original: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        quantize(original, CHOICE, tmp_path, verify=False)
    assert contents(tmp_path) == {"thesis.txt": sha256(b"mine").hexdigest()}


def test_nan_is_refused_with_its_place(model_copy: Callable[[], Path], tmp_path: Path) -> None:
    folder = model_copy()

    def poison(values: object) -> None:
        values[64 * 5 + 7] = 0x7FC0  # type: ignore[index]

    mutants.edit(folder, "model.layers.2.mlp.up_proj.weight", poison, "<u2")
    with pytest.raises(InputError, match=r"model\.layers\.2\.mlp\.up_proj\.weight holds 1 values .* at \[5, 7\]"):
        quantize(folder, CHOICE, tmp_path / "out", verify=False)
    assert not list((tmp_path / "out").glob("config.json"))


def test_group_size_that_does_not_divide_is_replaced_and_listed(tmp_path: Path) -> None:
    source = zoo.make_model("llama", tmp_path / "model", text=True)  # intermediate size 150
    record = quantize(source, CHOICE, tmp_path / "out", verify=False)
    entry = record["output"]["layers"]["model.layers.0.mlp.down_proj"]
    assert entry["choice"] == "int4:g30"
    assert "150 columns are not divisible by the group size 32" in entry["note"]
    assert "int4:g30" in (tmp_path / "out" / "README.md").read_text()


def test_tied_embedding_is_stored_and_charged_once(tmp_path: Path) -> None:
    source = zoo.make_model("llama_tied", tmp_path / "model", text=True)
    record = quantize(source, CHOICE, tmp_path / "out", embedding="int8:g64", verify=True, device="cpu")
    names = Checkpoint.open(tmp_path / "out").tensors
    assert "model.embed_tokens.dense.codes" in names
    assert not any(name.startswith("lm_head") for name in names)
    assert record["output"]["layers"]["model.embed_tokens"]["kind"] == "tied"
    with pytest.raises(InputError, match="one matrix"):
        quantize(source, CHOICE, tmp_path / "other", embedding="int8:g64", head="int4:g64")


def test_other_files_are_copied_or_listed(original: Path, model_copy: Callable[[], Path], tmp_path: Path) -> None:
    folder = model_copy()
    (folder / "LICENSE").write_text("free")
    (folder / "README.md").write_text("the source's card")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "extra").mkdir()
    (folder / "extra" / "note.txt").write_text("deep")
    record = quantize(folder, CHOICE, tmp_path / "out", verify=False)
    for name in ("LICENSE", "chat_template.jinja", "generation_config.json", "tokenizer.json", "extra/note.txt"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    assert (tmp_path / "out" / "SOURCE_README.md").read_text() == "the source's card"
    assert not (tmp_path / "out" / "pytorch_model.bin").exists()
    left_out = record["other_files"]["left_out"]
    every = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert every == record["other_files"]["copied"].keys() - {"SOURCE_README.md"} | {"README.md"} | left_out.keys()


def test_tiny_weights_get_bf16_scales_and_say_so(model_copy: Callable[[], Path], tmp_path: Path) -> None:
    folder = model_copy()

    def shrink(values: object) -> None:
        row = values[: 64 * 2]  # type: ignore[index]
        row &= 0x8000
        row |= 0x2F80  # 2**-32

    mutants.edit(folder, "model.layers.0.self_attn.q_proj.weight", shrink, "<u2")
    record = quantize(folder, CHOICE, tmp_path / "out", device="cpu")
    name = "model.layers.0.self_attn.q_proj"
    assert record["output"]["layers"][name]["choice"] == "int4:g32:scale=bf16"
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["choices"][config["layers"][name]] == "int4:g32:scale=bf16"
    assert Checkpoint.open(tmp_path / "out").tensors[f"{name}.dense.scale"].dtype == torch.bfloat16
    assert record["verification"]["passed"]
