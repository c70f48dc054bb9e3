"""The forecast: bytes equal to what is written, everything accounted for, quick on a 70B-shaped folder."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from bitbudget.errors import InputError
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.forecast import DEFAULT_CHOICES, forecast
from bitbudget.pipeline.output import uniform_plan
from bitbudget.pipeline.progress import Silent
from bitbudget.pipeline.quantize import Writing, write_checkpoint
from bitbudget.storage import Choice
from zoo import make_model

TEXT = {"name": "no text", "sha256": "0" * 64}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("llama"), dtype=torch.bfloat16)


@pytest.mark.parametrize(("choice", "rest"), [("int4:g128", "16bit"), ("int3:g32", "int8:g32"), ("int8s:g16", "16bit")])
def test_bytes_are_those_of_the_written_files(llama: Path, tmp_path: Path, choice: str, rest: str) -> None:
    found = forecast(llama, choices=[choice], embedding=rest, head=rest, probe=False)
    source = SourceModel.open(llama)
    kept = None if rest == "16bit" else Choice.parse(rest)
    writing = Writing(uniform_plan(source, Choice.parse(choice), kept, kept), "llama", TEXT)
    write_checkpoint(source, writing, tmp_path, Silent())
    on_disk = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    written = SourceModel.open(tmp_path, allow_native=True).checkpoint
    assert found.rows[0].disk_bytes == on_disk
    assert found.rows[0].weights_bytes == sum(info.nbytes for info in written.tensors.values())


def test_now_is_what_lies_there(llama: Path) -> None:
    now = forecast(llama, probe=False).now
    assert now.disk_bytes == (llama / "model.safetensors").stat().st_size
    assert now.weights_bytes < now.disk_bytes
    assert (now.files, now.blocks, now.layers) == (1, 3, 3 * 7 + 2)


def test_rows_lie_between_the_smallest_and_the_largest() -> None:
    found = forecast("demo", probe=False)
    low, high = found.reachable
    assert [row.choice for row in found.rows] == list(DEFAULT_CHOICES)
    assert all(low < row.weights_bytes < high for row in found.rows)
    assert high == found.now.weights_bytes
    assert (found.smallest.choice, found.smallest.embedding, found.largest.choice) == (
        "int2:g128",
        "int4:g128",
        "as it is",
    )


def test_everything_is_counted_once() -> None:
    found = forecast("demo", choices=["int4:g128"], probe=False)
    reasons = {entry.reason: entry for entry in found.kept}
    assert reasons["norm gain"].tensors == 13
    quantized = 6 * 7
    assert quantized + sum(entry.tensors for entry in found.kept) == found.now.tensors


def test_layers_that_cannot_take_a_choice_are_listed(llama: Path) -> None:
    found = forecast(llama, choices=["int4:g128"], probe=False)
    listed = {entry.note: entry for entry in found.fallbacks}
    assert sum(entry.layers for entry in listed.values()) == 3 * 7
    assert any("150 columns" in note for note in listed)
    assert all(entry.choice == "int4:g128" and entry.first for entry in listed.values())


def test_a_probe_gives_every_stage_seconds() -> None:
    found = forecast("demo", choices=["int4:g128"])
    assert [stage.name for stage in found.stages] == [
        "quantize",
        "check",
        "original model",
        "stored model",
        "compare",
    ]
    assert all(stage.seconds and stage.seconds > 0 for stage in found.stages)
    assert found.seconds == pytest.approx(sum(stage.seconds or 0 for stage in found.stages))
    assert found.stages[0].disk_bytes == found.rows[0].disk_bytes
    assert found.peak_ram_bytes == max(stage.ram_bytes for stage in found.stages)
    json.dumps(found.to_dict())


def test_without_a_probe_there_are_no_seconds() -> None:
    found = forecast("demo", choices=["int8:g128"], probe=False)
    assert found.seconds is None and found.speeds is None
    assert found.stages_choice == "int8:g128"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"choices": ["int7"]}, "int7"),
        ({"embedding": "int4:g64", "head": "int8:g64"}, "one matrix"),
        ({"context": 2000}, "1024 as its longest"),
        ({"context": 0}, "1 or more"),
        ({"kv_dtype": "int3"}, "fp16, bf16, fp32, fp8, int8"),
        ({"device": "tpu"}, "no device called 'tpu'"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        forecast("demo", probe=False, **settings)


LARGE = """
import json, sys, time
import torch, transformers
from transformers import AutoConfig, AutoModelForCausalLM
from bitbudget.pipeline.peaks import memory_now
import bitbudget.pipeline.forecast as module
before, started = memory_now(), time.perf_counter()
found = module.forecast(sys.argv[1])
seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "grown": memory_now() - before, "forecast": found.to_dict()}))
"""


def test_a_70b_shaped_folder_is_quick_and_light(tmp_path: Path) -> None:
    folder = sparse_llama(tmp_path / "large")
    done = subprocess.run(
        [sys.executable, "-c", LARGE, str(folder)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    found = json.loads(done.stdout)
    print(f"70B: {found['seconds']:.2f} s, {found['grown'] / 1e6:.0f} MB")
    assert found["seconds"] < 10
    assert found["grown"] < 400e6
    assert found["forecast"]["now"]["weights_bytes"] == 141_107_412_992
    assert found["forecast"]["kv_cache"]["nbytes"] == 80 * 2 * 8192 * 8 * 128 * 2
    assert not any(tmp_path.glob("tmp*"))  # the disk probe left nothing


def sparse_llama(folder: Path, shards: int = 15) -> Path:
    """Files of full length without content: 80 blocks of width 8,192, vocabulary 128,256, bf16."""
    width, inner, blocks, vocabulary, grouped = 8192, 28_672, 80, 128_256, 1024
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=64,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (vocabulary, width)}
    linears = {
        "q_proj": (width, width),
        "k_proj": (grouped, width),
        "v_proj": (grouped, width),
        "o_proj": (width, width),
    }
    wide = {"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)}
    for index in range(blocks):
        block = f"model.layers.{index}"
        shapes |= {f"{block}.self_attn.{name}": shape for name, shape in linears.items()}
        shapes |= {f"{block}.mlp.{name}": shape for name, shape in wide.items()}
        shapes |= {f"{block}.{name}": (width,) for name in ("input_layernorm", "post_attention_layernorm")}
    shapes |= {"model.norm": (width,), "lm_head": (vocabulary, width)}
    names = list(shapes)
    index = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        own = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        write_sparse(folder / file, {f"{name}.weight": shapes[name] for name in own})
        index |= {f"{name}.weight": file for name in own}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def write_sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A bf16 safetensors file whose data is one hole."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
