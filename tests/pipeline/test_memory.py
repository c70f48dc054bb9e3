"""The memory that a run is promised to take: its parts by hand, against real tensors, and against a process of its own."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, MambaConfig

from bitbudget.errors import InputError
from bitbudget.integrations.loading import load
from bitbudget.kernels import QuantLinear, reference
from bitbudget.models.source import SourceModel
from bitbudget.pipeline import memory
from bitbudget.pipeline.api import quantize
from bitbudget.pipeline.cache import reserved_cache
from bitbudget.pipeline.live import LiveBytes
from bitbudget.pipeline.memory import UnknownMemory, cache_name, linear_workspace, lookup_workspace, memory_promise
from bitbudget.pipeline.run import Runnable
from bitbudget.storage import Choice
from zoo import WINDOW, copy_tokenizer, make_model

CPU = torch.device("cpu")
MIX = "int8:g16*25%|int3:g16+outliers:2%"


def promise(source: SourceModel, context: int | None = None) -> memory.MemoryPromise:
    return memory_promise(source, context, None, CPU, None)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> SourceModel:
    return SourceModel.open(make_model("llama", tmp_path_factory.mktemp("llama"), dtype=torch.bfloat16))


def test_live_bytes_count_what_is_referred_to() -> None:
    known = torch.zeros(1000)
    with LiveBytes([known], lambda operation, arguments: [7] if "mul" in str(operation) else [], 0) as live:
        first = known + 1  # 4,000
        second = (first * 2)[:10]  # a view holds all of it
        del first
        third = second + 1  # 40
    assert live.peak.total == 8000
    assert live.peak_within.total == 8007
    live.forget_peaks()
    assert live.peak.total == 4040
    assert third.numel() == 10


def test_small_and_large_tensors_are_counted_apart() -> None:
    with LiveBytes(large_from=4000) as live:
        large = torch.ones(1000)
        del large
        small = torch.ones(999)
    assert (live.peak.small, live.peak.large, live.peak.total) == (3996, 4000, 7996)
    assert small.numel() == 999


def test_parts_of_a_small_model_by_hand(llama: SourceModel) -> None:
    found = promise(llama, 100)
    assert (found.context, found.chunk, found.kv_dtype) == (100, 100, "bf16")
    assert found.kv_cache == 3 * 2 * 100 * 2 * 16 * 2  # blocks, keys and values, tokens, heads, width, bytes
    # In the MLP of a block: the residual, its norm, and gate, up and their product; rotary tables of cosine and sine.
    held = 2 * 100 * (2 * 64 + 3 * 150 + 2 * 16)
    attention = torch.get_num_threads() * 64 * (6 * 512 + 8 * 16)
    assert held <= found.activations <= held + attention + 4 * 100 * 4 * 64
    # Decoding an MLP's matrix, a product with it, and what the process takes.
    assert found.workspace > 28 * 150 * 64 + memory.LIBRARIES_BYTES + memory.TRIM_BYTES
    assert found.reserve == 0
    assert found.beside_weights == found.kv_cache + found.activations + found.workspace


def test_the_reserve_is_the_user_s_or_the_device_s(llama: SourceModel) -> None:
    assert memory_promise(llama, 10, None, CPU, 123).reserve == 123
    assert memory_promise(llama, 10, None, torch.device("cuda"), None).reserve == 600 * 2**20
    assert memory_promise(llama, 10, None, torch.device("cuda"), 0).reserve == 0


def test_the_cache_s_dtype_can_be_another(llama: SourceModel) -> None:
    own, other = promise(llama, 100), memory_promise(llama, 100, "fp8", CPU, None)
    assert 2 * other.kv_cache == own.kv_cache
    assert other.activations == own.activations


def test_running_in_fp32_copies_what_is_kept_in_16_bits(llama: SourceModel) -> None:
    wide = memory_promise(llama, 100, None, CPU, None, dtype=torch.float32)
    kept = 2 * 503 * 64 + 7 * 64  # embedding, head, norm gains
    assert wide.kv_cache == 2 * promise(llama, 100).kv_cache
    assert wide.activations > 4 * kept + promise(llama, 100).activations


def test_more_context_takes_no_less(llama: SourceModel) -> None:
    sizes = [promise(llama, context).beside_weights for context in (1, 16, 64, 128, 256)]
    assert sizes == sorted(sizes)
    long = [promise(_longer(llama), context).beside_weights for context in (512, 1024, 4096, 16_384)]
    assert long == sorted(long)


def _longer(source: SourceModel) -> SourceModel:
    config = source.config.__class__.from_dict(source.config.to_dict() | {"max_position_embeddings": 32_768})
    return replace(source, config=config)


def test_a_window_bounds_the_cache(tmp_path: Path) -> None:
    source = SourceModel.open(make_model("mistral", tmp_path))
    short, long = promise(source, 64), promise(source, 256)
    assert short.kv_cache == long.kv_cache == 3 * 2 * (WINDOW - 1) * 2 * 16 * 4


def test_a_cache_that_is_not_known_is_refused_by_name(llama: SourceModel) -> None:
    source = replace(llama, config=MambaConfig(vocab_size=503, hidden_size=64, num_hidden_layers=3))
    with pytest.raises(UnknownMemory, match="number of attention heads") as caught:
        promise(source, 100)
    assert str(llama.folder) in str(caught.value)


@pytest.mark.parametrize("context", [0, 257])
def test_a_context_that_cannot_be_is_refused(llama: SourceModel, context: int) -> None:
    with pytest.raises(InputError, match="context"):
        promise(llama, context)


CHOICES = ("int4:g128", "int8:g16", "int2:g16", "int5:g64:out", "int8s:g128", "int3", f"{MIX}/in=scale/out=scale")


@pytest.mark.parametrize("text", CHOICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_choice_takes_more_than_the_workspace(text: str, dtype: torch.dtype) -> None:
    shape = (2048, 1024)
    module = QuantLinear(Choice.parse(text), shape, dtype=dtype)
    for name, tensor in module.named_buffers():
        counted = name.endswith(("rows", "row_pointers"))
        end = module.get_buffer("outliers.values").numel() if name.endswith("pointers") else len(tensor)
        tensor.copy_(torch.linspace(0, end, len(tensor)) if counted else torch.ones(()))
    x = torch.zeros(64, shape[1], dtype=dtype)
    ids = torch.arange(512).reshape(1, 512)
    with torch.no_grad(), LiveBytes(module.buffers()) as live:
        result = module(x)
    assert live.peak.total <= result.nbytes + sum(linear_workspace(x, torch.empty(*shape[::-1], dtype=dtype)))
    with torch.no_grad(), LiveBytes(module.buffers()) as live:
        reference.lookup(ids, module.stored())
    assert live.peak.total <= sum(lookup_workspace(torch.empty(shape, dtype=dtype), ids))


ASKED = ("llama_tied", "gemma2", "gemma3", "gpt2", "opt", "phi3", "qwen3_moe")


@pytest.mark.parametrize("name", ASKED)
def test_the_forward_pass_holds_what_was_said(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PROMPT_CHUNK", 64)
    make_model(name, tmp_path / "source", dtype=torch.bfloat16, text=True)
    quantize(tmp_path / "source", MIX, tmp_path / "out", embedding="int4:g16", verify=False)
    found = promise(SourceModel.open(tmp_path / "out", allow_native=True), 200)
    model = load(tmp_path / "out")
    cache = reserved_cache(model.config, 200, 64)
    with torch.no_grad(), LiveBytes((*model.parameters(), *model.buffers())) as live:
        for tokens in (64, 64, 1, 7, 64):
            model(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=True, **{cache_name(model): cache})
    assert live.peak.total <= found.kv_cache + found.activations + found.workspace - memory.LIBRARIES_BYTES


@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral"])
def test_the_reserved_cache_is_transformers_own_to_a_model(name: str, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_model(name, tmp_path), dtype=torch.float32)
    ids = torch.arange(3, 203)[None]
    pieces = ids.split((40, 64, 1, 1, 30, 1, 63), dim=1)
    caches = reserved_cache(model.config, 200, 64), DynamicCache(config=model.config)
    with torch.no_grad():
        for piece in pieces:
            ours, theirs = (model(input_ids=piece, **{cache_name(model): cache}).logits for cache in caches)
            torch.testing.assert_close(ours, theirs)
    assert caches[0].get_seq_length() == 200


def test_a_checkpoint_runs_in_the_context_of_its_budget(finished: Path, copy: Path) -> None:
    assert Runnable.open(finished, "cpu").context == 256
    record = json.loads((copy / "bitbudget.json").read_text())
    (copy / "bitbudget.json").write_text(json.dumps(record | {"memory": {"context": 77}}))
    opened = Runnable.open(copy, "cpu")
    assert opened.context == 77 and opened.promise is not None and opened.promise.context == 77
    assert Runnable.open(copy, "cpu", context=100).context == 100
    with pytest.raises(InputError, match="no dtype"):
        Runnable.open(copy, "cpu", "int8")


@pytest.fixture(scope="module")
def middle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 24 M parameters, stored in int4 with a head of 16 bits."""
    folder = tmp_path_factory.mktemp("middle")
    config = LlamaConfig(
        vocab_size=4096, hidden_size=512, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=1024, tie_word_embeddings=False, bos_token_id=0, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder / "source")
    copy_tokenizer(folder / "source")
    quantize(folder / "source", "int4:g128", folder / "out", embedding="int4:g128", verify=False)
    return folder / "out"


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    "words",
    [[], ["--dtype", "float32"], ["--kernels", "reference"], ["--kernels", "a8"]],
    ids=["own", "float32", "reference", "a8"],
)
def test_a_run_keeps_its_promise(middle: Path, words: list[str]) -> None:
    prompt = " the" * 1000
    command = [
        sys.executable,
        "-m",
        "bitbudget",
        "run",
        str(middle),
        prompt,
        "--raw",
        "--json",
        "--device",
        "cpu",
        *words,
    ]
    finished = subprocess.run([*command, "--max-new-tokens", "8"], capture_output=True, text=True, check=True)
    found = json.loads(finished.stdout)
    used = found["memory"]
    assert found["prompt_tokens"] > 990 and found["tokens"] == 8
    assert 0 < used["mapped"] <= used["weights"] + 2**20
    assert used["peak"] <= used["promised"]
    packed = 0 if "reference" in words else used["weights"] + used["packing"]  # not in the files any more
    assert used["peak"] - used["mapped"] <= packed + used["promise"]["beside_weights"]
    assert "promised" in finished.stderr and "key-value cache of 1,024 tokens" in finished.stderr
