"""Every command does what it says: results on stdout, JSON alone where asked, the same words everywhere."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import Result


def document(result: Result) -> dict[str, Any]:
    """The one JSON document of stdout."""
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


def damage(folder: Path, ending: str) -> str:
    """Turns the first bit of the first tensor with this ending; returns its name."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if name.endswith(ending))
    tensors[name].view(-1).view(torch.uint8)[0] ^= 1
    save_file(tensors, path, metadata={"format": "pt"})
    return name


def test_forecast_agrees_with_quantize(invoke, tiny: Path, stored: Path) -> None:
    found = document(invoke("forecast", tiny, "--choice", "int4:g64", "--no-probe", "--json"))
    record = json.loads((stored / "bitbudget.json").read_text())
    assert found["rows"][0]["weights_bytes"] == record["output"]["weights_bytes"]
    assert found["rows"][0]["disk_bytes"] == (stored / "model.safetensors").stat().st_size


def test_forecast_as_text(invoke, tiny: Path) -> None:
    result = invoke("forecast", tiny, "--choice", "int4:g64", "--choice", "int8", "--no-probe", "--context", "100")
    assert result.exit_code == 0, result.output
    for words in (
        "int4:g64",
        "int8",
        "Reachable: from",
        "Key-value cache of 100 tokens in fp16",
        "norm gain",
        "peak RAM",
    ):
        assert words in result.stdout
    assert "150 columns are not divisible by the group size 64" in " ".join(result.stdout.split())


def test_quantize_as_text(invoke, tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    result = invoke("quantize", tiny, "--choice", "int4:g64", "-o", output)
    assert result.exit_code == 0, result.output
    for words in ("*.mlp.down_proj", "Verification: passed", "KL divergence", "Not the choice"):
        assert words in result.stdout
    assert "bitbudget run" in result.stderr


def test_quantize_as_json(invoke, tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = ["--choice", "int8:g32", "--embedding", "int8:g32", "--head", "int6:g32", "--max-shard-size", "100KB"]
    found = document(invoke("quantize", tiny, *arguments, "-o", output, "--json"))
    assert found["verification"]["passed"]
    assert found["settings"]["embedding"] == "int8:g32"
    assert found["disk_bytes"] == sum(path.stat().st_size for path in output.glob("model*.safetensors*"))
    assert len(list(output.glob("*.safetensors"))) > 1


def test_quantize_tells_that_floats_are_not_converted(invoke, tiny: Path, tmp_path: Path) -> None:
    arguments = ["--choice", "int8", "--embedding", "fp32", "--no-verify", "--json"]
    found = document(invoke("quantize", tiny, *arguments, "-o", tmp_path / "out"))
    assert found["notes"] == {"model.embed_tokens": "kept in bf16 as it is instead of fp32"}


def test_quantize_logs_beside_the_folder(invoke, tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    for _ in range(2):  # the second one is refused before any work: no line
        invoke("quantize", tiny, "--choice", "int8", "-o", output, "--no-verify")
    lines = (tmp_path / "out.run.jsonl").read_text().splitlines()
    entry = json.loads(lines[0])
    assert len(lines) == 1
    assert entry["outcome"] == "done"
    assert entry["command"]["choice"] == "int8"
    assert entry["seconds"]["quantize"] > 0
    assert entry["peak_rss_bytes"] > 2**20
    assert {"started", "host", "threads"} <= entry.keys()


def test_a_log_that_cannot_be_written_is_no_error(invoke, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "out.run.jsonl").mkdir()
    result = invoke("quantize", tiny, "--choice", "int8", "-o", tmp_path / "out", "--no-verify")
    assert result.exit_code == 0, result.output
    assert "not run" in result.stdout


def test_verify(invoke, tiny: Path, stored: Path) -> None:
    result = invoke("verify", stored, "--against", tiny, "--tokens", "500")
    assert result.exit_code == 0, result.output
    assert "Verification: passed" in result.stdout
    found = document(invoke("verify", stored, "--tokens", "500", "--json"))
    assert found["passed"] and "kl" not in found["measurement"]


@pytest.mark.parametrize("ending", [".dense.codes", ".dense.scale", "norm.weight"])
def test_verify_names_what_is_damaged(invoke, damaged: Path, ending: str) -> None:
    name = damage(damaged, ending)
    result = invoke("verify", damaged)
    assert result.exit_code == 5
    assert "FAILED" in result.stdout
    assert name in result.stdout
    found = json.loads(invoke("verify", damaged, "--json").stdout)
    assert not found["passed"]
    assert any(name in problem for problem in found["problems"])


def test_verify_of_an_emptied_folder_fails(invoke, damaged: Path) -> None:
    (damaged / "bitbudget.json").unlink()
    result = invoke("verify", damaged)
    assert result.exit_code == 5
    assert "bitbudget.json" in result.stdout


def test_evaluate(invoke, tiny: Path, stored: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text(
        "".join(json.dumps({"text": f"{word} and so on. " * 30}) + "\n" for word in ("One", "Two", "Three"))
    )
    arguments = ["evaluate", stored, "--text", text, "--window", "64", "--stride", "32"]
    found = document(invoke(*arguments, "--against", tiny, "--json"))
    assert found["text"]["part"] == "whole"
    assert found["measurement"]["stride"] == 32
    assert found["measurement"]["kl"] > 0
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert "perplexity a word" in result.stdout and "KL" not in result.stdout


def test_inspect(invoke, stored: Path) -> None:
    result = invoke("inspect", stored)
    assert result.exit_code == 0, result.output
    for words in ("*.self_attn.q_proj", "0-2", "█", "norm gain", "Verification: passed", "torch"):
        assert words in result.stdout
    every = invoke("inspect", stored, "--layers")
    assert "model.layers.1.self_attn.q_proj" in every.stdout
    assert len(document(invoke("inspect", stored, "--json"))["output"]["layers"]) == 23


def test_inspect_draws(invoke, stored: Path, damaged: Path, tmp_path: Path, edit_json) -> None:
    plots = tmp_path / "new" / "plots"
    result = invoke("inspect", stored, "--plots", plots)
    assert result.exit_code == 0, result.output
    assert [path.name for path in plots.iterdir()] == ["bits.png"]
    assert f"Drawn: {plots / 'bits.png'}" in result.stderr.replace("\n", " ")
    compared = {"name": "plan", "bytes": 9000, "predicted": 0.02, "kl": 0.025, "kl_se": 0.001}
    edit_json(damaged / "bitbudget.json", guard={"winner": "plan", "candidates": [compared]})
    found = document(invoke("inspect", damaged, "--plots", plots, "--json"))
    assert found["plots"] == [str(plots / name) for name in ("bits.png", "frontier.png", "predicted.png")]
    assert "plots" not in document(invoke("inspect", stored, "--json"))


def test_inspect_cannot_draw_into_a_file(invoke, stored: Path) -> None:
    result = invoke("inspect", stored, "--plots", stored / "config.json")
    assert result.exit_code == 6
    assert "config.json" in result.stderr and result.stdout == ""


def test_inspect_shows_a_file_that_differs(invoke, damaged: Path) -> None:
    with (damaged / "model.safetensors").open("ab") as file:
        file.write(b"more")
    assert "(found " in invoke("inspect", damaged).stdout


def test_run(invoke, stored: Path) -> None:
    greedy = invoke("run", stored, "Once upon a time", "--max-new-tokens", "8")
    assert greedy.exit_code == 0, greedy.output
    assert "no chat template" in greedy.stderr
    assert "tokens/s" in greedy.stderr
    again = document(invoke("run", stored, "Once upon a time", "--max-new-tokens", "8", "--raw", "--json"))
    assert again["text"] == greedy.stdout.removesuffix("\n")
    assert again["tokens"] <= 8 and not again["chat"]


def test_run_draws_with_a_seed(invoke, stored: Path) -> None:
    arguments = ["run", stored, "Once", "--raw", "--max-new-tokens", "8", "--temperature", "1", "--json"]
    first, second, other = (document(invoke(*arguments, "--seed", str(seed)))["text"] for seed in (1, 1, 2))
    assert first == second != other


def test_run_speaks_through_the_chat_template(invoke, damaged: Path, edit_json) -> None:
    edit_json(damaged / "tokenizer_config.json", chat_template="Q: {{ messages[0]['content'] }} A:")
    chat = document(invoke("run", damaged, "Who?", "--max-new-tokens", "4", "--json"))
    raw = document(invoke("run", damaged, "Q: Who? A:", "--max-new-tokens", "4", "--raw", "--json"))
    assert chat["chat"] and not raw["chat"]
    assert chat["text"] == raw["text"]


def test_run_refuses_a_prompt_beyond_the_context(invoke, stored: Path) -> None:
    result = invoke("run", stored, "word " * 400, "--raw")
    assert result.exit_code == 3
    assert "context" in result.stderr


def test_run_keeps_within_a_smaller_context(invoke, stored: Path) -> None:
    limited = document(invoke("run", stored, "Once upon", "--raw", "--context", "12", "--json"))
    assert limited["prompt_tokens"] + limited["tokens"] <= 12
    refused = invoke("run", stored, "Once upon", "--raw", "--context", "100000")
    assert refused.exit_code == 3 and "longest" in refused.stderr


def test_run_tells_promised_and_measured_memory(invoke, stored: Path) -> None:
    memory = document(invoke("run", stored, "Once", "--raw", "--max-new-tokens", "2", "--json"))["memory"]
    promise = memory["promise"]
    assert promise["beside_weights"] == sum(
        promise[part] for part in ("kv_cache", "activations", "workspace", "reserve")
    )
    assert memory["promised"] == memory["weights"] + memory["packing"] + promise["beside_weights"]
    assert memory["exact"] and memory["libraries"] > 2**20
    told = invoke("run", stored, "Once", "--raw", "--max-new-tokens", "2", "--dtype", "float32").stderr
    assert "memory: " in told and "of interpreter, libraries and tokenizer; promised " in told


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_the_terminal(invoke, tiny: Path, stored: Path, columns: int) -> None:
    for command in (["inspect", stored], ["forecast", tiny, "--no-probe"]):
        tables = [line for line in invoke(*command, columns=columns).stdout.splitlines() if "  " in line.strip()]
        assert tables
        assert max(map(len, tables)) <= columns
