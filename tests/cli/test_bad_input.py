"""What a user can get wrong: each has its own exit code and paragraph, and nothing damaged is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

INDEX = "model.safetensors.index.json"
Damage = Callable[[Path], object]


def shards(model: Path) -> list[Path]:
    return sorted(model.glob("*.safetensors"))


def to_pickle(model: Path) -> None:
    for path in [*shards(model), model / INDEX]:
        path.unlink()
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def truncate(model: Path) -> None:
    content = shards(model)[0].read_bytes()
    shards(model)[0].write_bytes(content[: len(content) // 2])


def edit_index(model: Path, name: str, shard: str) -> None:
    index = json.loads((model / INDEX).read_text())
    index["weight_map"][name] = shard
    (model / INDEX).write_text(json.dumps(index))


def lie(model: Path) -> None:
    content = bytearray(shards(model)[0].read_bytes())
    content[:8] = (2**40).to_bytes(8, "little")
    shards(model)[0].write_bytes(bytes(content))


def put_nan(model: Path) -> None:
    name = "model.layers.2.mlp.down_proj.weight"
    path = model / json.loads((model / INDEX).read_text())["weight_map"][name]
    tensors = load_file(path)
    tensors[name][3, 5] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})


def edit_config(model: Path, **entries: object) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


MODELS: dict[str, tuple[Damage, str]] = {
    "missing": (lambda model: shutil.rmtree(model), "There is no folder"),
    "empty": (lambda model: [path.unlink() for path in model.iterdir()], "config.json"),
    "pickle": (to_pickle, "pickle only (pytorch_model.bin)"),
    "missing shard": (lambda model: shards(model)[1].unlink(), "is absent"),
    "truncated shard": (truncate, "model-00001-of-0000"),
    "absent tensor": (
        lambda model: edit_index(model, "model.ghost.weight", "model-00001-of-00003.safetensors"),
        "ghost",
    ),
    "shard outside": (
        lambda model: edit_index(model, "model.norm.weight", "../evil.safetensors"),
        "outside the folder",
    ),
    "lying header": (lie, "the header claims"),
    "NaN": (put_nan, "NaN or infinite, the first at [3, 5]"),
    "unknown architecture": (lambda model: edit_config(model, model_type="frobnicator"), "'frobnicator'"),
    "already quantized": (lambda model: edit_config(model, quantization_config={"quant_method": "gptq"}), "'gptq'"),
    "broken config": (lambda model: (model / "config.json").write_text("{"), "not valid JSON"),
    "no tokenizer": (lambda model: (model / "tokenizer.json").unlink(), "No tokenizer could be loaded"),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_cannot_be_used(invoke, model: Path, tmp_path: Path, case: str) -> None:
    damage, words = MODELS[case]
    damage(model)
    output = tmp_path / "out"
    result = invoke("quantize", model, "--choice", "int4:g64", "-o", output)
    assert result.exit_code == 3, result.output
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert not (output / "config.json").exists()
    assert list(output.glob(".*.partial")) == []


def test_a_choice_with_a_typo_points_at_the_character(invoke, tmp_path: Path) -> None:
    result = invoke("quantize", "demo", "--choice", "int4:k128", "-o", tmp_path / "out")
    assert result.exit_code == 3
    lines = result.stderr.splitlines()
    pointed = lines.index("    int4:k128")
    assert lines[pointed + 1].rstrip() == "         ^"
    assert not (tmp_path / "out").exists()


def test_a_choice_in_rich_markup_is_shown_as_it_is(invoke, tmp_path: Path) -> None:
    result = invoke("quantize", "demo", "--choice", "[bold]int4[/bold]", "-o", tmp_path / "out")
    assert "    [bold]int4[/bold]" in result.stderr.splitlines()


@pytest.mark.parametrize("choice", ["fp16", "bf16"])
def test_a_choice_that_keeps_everything_is_refused(invoke, tiny: Path, tmp_path: Path, choice: str) -> None:
    result = invoke("quantize", tiny, "--choice", choice, "-o", tmp_path / "out")
    assert result.exit_code == 3
    assert "nothing would be quantized" in result.stderr
    assert not (tmp_path / "out").exists()


TEXTS = {
    "absent": (None, "cannot be read: No such file"),
    "empty": ("", "no document"),
    "too short": ("A few words.\n", "too short"),
    "not JSON": ('{"text": "a"}\n{"text": \n', "Line 2"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_text_that_cannot_be_used(invoke, tiny: Path, tmp_path: Path, case: str) -> None:
    content, words = TEXTS[case]
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_text(content)
    result = invoke("quantize", tiny, "--choice", "int4:g64", "-o", tmp_path / "out", "--text", text)
    assert result.exit_code == 3
    assert words in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "cuda:9999"])
def test_a_device_that_is_not_there(invoke, tmp_path: Path, device: str) -> None:
    result = invoke("quantize", "demo", "--choice", "int4", "-o", tmp_path / "out", "--device", device)
    assert result.exit_code == 3
    assert device in result.stderr


def test_an_output_that_is_not_empty(invoke, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    result = invoke("quantize", tiny, "--choice", "int4:g64", "-o", tmp_path / "out")
    assert result.exit_code == 6
    assert "is not empty" in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_an_output_that_is_a_file(invoke, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    result = invoke("quantize", tiny, "--choice", "int4:g64", "-o", tmp_path / "out")
    assert result.exit_code == 6
    assert (tmp_path / "out").read_text() == "precious"
    assert not (tmp_path / "out.run.jsonl").exists()


def test_an_output_below_a_file(invoke, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = invoke("quantize", tiny, "--choice", "int4:g64", "-o", tmp_path / "file" / "out")
    assert result.exit_code == 6
    assert "cannot be made" in result.stderr


def test_an_output_that_cannot_be_written(invoke, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Permissions do not stop the superuser that tests may run as, so mkdir itself refuses.
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    result = invoke("quantize", tiny, "--choice", "int4:g64", "-o", tmp_path / "out")
    assert result.exit_code == 6
    assert "Permission denied" in result.stderr


@pytest.mark.parametrize("command", ["verify", "evaluate", "inspect", "run"])
def test_a_checkpoint_that_is_not_there(invoke, tmp_path: Path, command: str) -> None:
    (tmp_path / "text.txt").write_text("words " * 100)
    more = {"evaluate": ["--text", tmp_path / "text.txt"], "run": ["Once"]}.get(command, [])
    result = invoke(command, tmp_path / "out", *more)
    assert result.exit_code == 3
    assert f"There is no folder {tmp_path / 'out'}." in result.stderr
