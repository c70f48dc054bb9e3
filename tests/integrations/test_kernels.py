"""A checkpoint on the CPU kernels: chosen by themselves, near the decoded weights, saved as it was, in no more memory."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import bitbudget  # noqa: F401 -- registers
from bitbudget.errors import InputError
from bitbudget.integrations.loading import load
from bitbudget.kernels import supported_isas, use_kernels
from bitbudget.kernels.linear import QuantModule, TiedLinear, multiplying
from integrations.written import TABLES, dense_twin, logits, read_tensors, write_native
from zoo import ARCHITECTURES, HELD_OUT, make_model

pytestmark = pytest.mark.skipif(not supported_isas(), reason="the package was installed without its CPU kernels")

CHOICES = {"linear": "int8*10%|int4+outliers:1%"}


def packed(model: nn.Module) -> list[QuantModule]:
    return [module for _, module in multiplying(model) if module.packed is not None]


@pytest.mark.parametrize("name", [*ARCHITECTURES, *HELD_OUT])
def test_every_architecture_is_near_its_decoded_weights(name: str, tmp_path: Path) -> None:
    source = make_model(name, tmp_path / "source")
    stored = write_native(source, tmp_path / "native", CHOICES | TABLES)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "native")
    assert len(packed(model)) == len(list(multiplying(model))) > 0
    expected = logits(dense_twin(source, stored))
    spread = float(expected.std())
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-2 * spread)
    eight = load(tmp_path / "native", kernels="a8")
    assert {module.kernels for module in packed(eight)} == {"a8"}
    torch.testing.assert_close(logits(eight), expected, rtol=0, atol=0.5 * spread)


@pytest.mark.parametrize("name", ["llama", "llama_tied", "gpt2"])
def test_what_is_saved_is_what_was_loaded(name: str, tmp_path: Path) -> None:
    write_native(make_model(name, tmp_path / "source"), tmp_path / "native", CHOICES | TABLES)
    model = load(tmp_path / "native")
    assert packed(model)
    model.save_pretrained(tmp_path / "again")
    before, after = read_tensors(tmp_path / "native"), read_tensors(tmp_path / "again")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(before[name].dtype == after[name].dtype for name in before if before[name].numel())
    assert torch.equal(logits(load(tmp_path / "again")), logits(model))


def test_the_kernels_can_be_changed_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_model("llama_tied", tmp_path / "source")
    stored = write_native(source, tmp_path / "native", CHOICES | TABLES)
    reference = load(tmp_path / "native", kernels="reference")
    expected = logits(dense_twin(source, stored))
    assert not packed(reference)
    torch.testing.assert_close(logits(reference), expected, rtol=1e-5, atol=1e-5)
    fast = logits(load(tmp_path / "native"))
    use_kernels(reference, "a16")
    assert torch.equal(logits(reference), fast)
    use_kernels(reference, "reference")
    torch.testing.assert_close(logits(reference), expected, rtol=1e-5, atol=1e-5)
    monkeypatch.setenv("BITBUDGET_KERNELS", "reference")
    assert not packed(AutoModelForCausalLM.from_pretrained(tmp_path / "native"))
    monkeypatch.setenv("BITBUDGET_KERNELS", "fast")
    with pytest.raises(InputError, match="no kernels 'fast'"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "native")


def test_generation_and_copies(tmp_path: Path) -> None:
    write_native(make_model("llama_tied", tmp_path / "source"), tmp_path / "native", CHOICES | TABLES)
    model = load(tmp_path / "native")
    settings = {"max_new_tokens": 12, "do_sample": False}
    prompt = torch.tensor([[5, 6, 7]])
    generated = model.generate(prompt, **settings)
    assert torch.equal(generated, load(tmp_path / "native", kernels="reference").generate(prompt, **settings))
    twin = copy.deepcopy(model)
    assert isinstance(twin.lm_head, TiedLinear) and twin.lm_head.embedding is twin.model.embed_tokens
    assert torch.equal(twin.generate(prompt, **settings), generated)
    assert packed(model.to(torch.bfloat16)) and model.generate(prompt, **settings).shape == (1, 15)


MEMORY = """
import json, sys, torch
from pathlib import Path
def held():
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.endswith("kB")}
    return sizes["RssAnon"] + sizes["RssFile"] + sizes["RssShmem"]
from bitbudget.integrations.loading import load
load(sys.argv[2])
before = held()
model = load(sys.argv[1])
taken = held() - before
stored = sum(tensor.nbytes for tensor in model.state_dict().values())
print(json.dumps([taken, stored]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_packed_weights_take_the_place_of_the_stored_ones(tmp_path: Path) -> None:
    """Pages of the file among what is held, too."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=512, hidden_size=1024, intermediate_size=4096, num_hidden_layers=4, num_attention_heads=8
    )
    with torch.random.fork_rng(devices=[]):
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "source")
    write_native(tmp_path / "source", tmp_path / "native", {"linear": "int8:g128"})
    write_native(make_model("llama", tmp_path / "small"), tmp_path / "warm", CHOICES)
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "native"), str(tmp_path / "warm")]
    taken, stored = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert stored > 60 * 2**20
    assert taken < 1.15 * stored + 12 * 2**20


def test_weights_on_the_disk(tmp_path: Path) -> None:
    """accelerate moves parameters there, and leaves buffers, which stored tensors are, in memory."""
    write_native(make_model("llama", tmp_path / "source"), tmp_path / "native", CHOICES)
    model = load(tmp_path / "native", device_map={"": "disk"}, offload_folder=tmp_path / "offload")
    assert packed(model)
    assert torch.equal(logits(model), logits(load(tmp_path / "native")))
