"""The forecast's peak memory against a run in a process of its own, sampled while it works."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from zoo import copy_tokenizer

RUN = """
import json, sys, threading, time
import torch
from bitbudget.pipeline.api import quantize
from bitbudget.pipeline.forecast import forecast
from bitbudget.pipeline.peaks import memory_now

peaks, place = {}, ["before"]

def sample():
    while place[0] is not None:
        peaks[place[0]] = max(peaks.get(place[0], 0), memory_now())
        time.sleep(0.002)

class Stages:
    def start(self, stage, total): place[0] = stage
    def advance(self, amount): pass
    def finish(self): pass

torch.set_num_threads(1)
found = forecast(sys.argv[1], choices=["int4:g128"], probe=False)
threading.Thread(target=sample, daemon=True).start()
record = quantize(sys.argv[1], "int4:g128", sys.argv[2], progress=Stages())
place[0] = None
print(json.dumps({"forecast": found.to_dict(), "peaks": peaks, "plan": record["output"]["disk_bytes"]}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the process's own memory is read from /proc")
def test_peak_memory_is_within_a_quarter_of_the_measured_one(tmp_path: Path) -> None:
    model = llama(tmp_path / "model")
    command = [sys.executable, "-c", RUN, str(model), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    stages = {stage["name"]: stage["ram_bytes"] for stage in found["forecast"]["stages"]}
    measured = {name.removesuffix(", block by block"): peak for name, peak in found["peaks"].items()}
    for name, forecast in stages.items():
        print(f"{name}: forecast {forecast / 1e6:.0f} MB, measured {measured[name] / 1e6:.0f} MB")
        assert 0.75 < forecast / measured[name] < 1.25, name
    assert found["forecast"]["rows"][0]["disk_bytes"] == found["plan"]
    shutil.rmtree(tmp_path / "out")


def llama(folder: Path) -> Path:
    """Large enough that its head, and not the libraries, decides on the peak."""
    config = LlamaConfig(
        vocab_size=16_000,
        hidden_size=768,
        intermediate_size=1024,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.save_pretrained(folder)
    copy_tokenizer(folder)
    return folder
