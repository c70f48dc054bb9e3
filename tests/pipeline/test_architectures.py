"""Every architecture goes all the way: quantize, verify, load with transformers, and both measure the same divergence.

`benchmarks/architectures.py` is the long form, with more text and four widths.
"""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import bitbudget  # noqa: F401  registers the format
import zoo
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.api import quantize
from bitbudget.pipeline.progress import Run
from bitbudget.pipeline.texts import Cut, Sample
from bitbudget.pipeline.verify import verify_folder

SHORT = Cut(window=40, tokens=120)
pytestmark = pytest.mark.usefixtures("reference_kernels")
# Linears and embedding stored, outliers, several shards; the sliding windows of the zoo are shorter than the sequences.
CHOICE, EMBEDDING = "int3:g32+outliers:0.5%", "int4:g32"


def divergence(original: Path, stored: Path, chosen: Sample) -> float:
    """KL in nats per token with both models loaded by transformers alone."""
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for folder in (original, stored)]
    total = 0.0
    for sequence in chosen.sequences:
        with torch.no_grad():
            log_p, log_q = (
                model(sequence.ids[None], use_cache=False).logits[0, sequence.positions].double().log_softmax(-1)
                for model in models
            )
        total += float(torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="sum"))
    return total / chosen.tokens


@pytest.mark.parametrize("name", [*zoo.ARCHITECTURES, *zoo.HELD_OUT, *zoo.MIXTURES])
def test_quantize_verify_load(name: str, tmp_path: Path) -> None:
    original, stored = (
        zoo.make_model(name, tmp_path / "model", dtype=torch.bfloat16, shards=2, text=True),
        tmp_path / "out",
    )
    record = quantize(original, CHOICE, stored, embedding=EMBEDDING, max_shard_bytes=200_000, verify=False)
    assert any("outliers" in entry["choice"] for entry in record["output"]["layers"].values())
    result = verify_folder(stored, SourceModel.open(original), None, Run("cpu"), SHORT)
    assert result.passed, result.problems
    assert result.measurement is not None and result.sample is not None
    measured = result.measurement.kl
    assert measured is not None and measured > 0.05
    assert abs(divergence(original, stored, result.sample) - measured) <= 1e-6 + 1e-3 * measured
