"""Makes the golden checkpoint of the current format version: `python scripts/build_golden.py`, once per version.

A tiny random Llama (2 blocks, width 64) whose fourteen linears and whose embedding use every kind of choice, with the hash
of every decoded layer. It stays in tests/golden/ for ever and must decode to these bits with every later version.
"""

import json
import shutil
import tempfile
from hashlib import sha256
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from bitbudget.checkpoint.native import FORMAT_VERSION
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.output import DEFAULT_SHARD_BYTES, OutputPlan, plan_layer, shards_of
from bitbudget.pipeline.progress import Silent
from bitbudget.pipeline.quantize import Writing, write_checkpoint
from bitbudget.pipeline.verify import open_folder
from bitbudget.storage import Choice

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
CHOICES = (
    "int4:g32",  # the tied embedding
    "int2:g32",
    "int3:g64",
    "int4",
    "int5:g16",
    "int6s:g32",
    "int8s",
    "int8:g32*25%|int4:g32*10|int2:g32",
    "int2:g32+outliers:1.5%",
    "int3:g16:zero=real",
    "int4:g32:zero=half",
    "int4:g16:out",
    "int3:g16:zeros=byte:scale=bilevel(6,16x1)",
    "int4:g32:scale=fp32",
    "int3:g16:zero=real:zeros=bilevel(3,16x1,offset):scale=bilevel(3,16x1,offset)+outliers:20",
)


def make_source(folder: Path) -> None:
    """A tiny model with a generator of its own; one row of tiny weights makes a layer need bf16 scales."""
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.25 if parameter.dim() == 2 else 1.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        model.model.layers[0].self_attn.v_proj.weight[3] *= 1e-6
    model.save_pretrained(folder)


def main() -> None:
    folder = GOLDEN / f"v{FORMAT_VERSION}"
    if folder.exists():
        raise SystemExit(f"{folder} exists: a golden checkpoint is never made anew.")
    with tempfile.TemporaryDirectory() as temporary:
        make_source(Path(temporary))
        source = SourceModel.open(temporary)
        wanted = zip(source.layers, CHOICES, strict=True)
        layers = tuple(plan_layer(layer, Choice.parse(text)) for layer, text in wanted)
        assert not any(planned.note for planned in layers), "every choice fits its layer"
        shards = shards_of(source, layers, DEFAULT_SHARD_BYTES)
        plan = OutputPlan(layers, source.passthrough, shards, {"method": "round to nearest"})
        text = {"name": "none", "sha256": "", "parts": {}}
        write_checkpoint(source, Writing(plan, "golden", text), folder, Silent())
    golden = open_folder(folder)
    decoded = {}
    for name in golden.config.layers:
        weight = golden.weights.stored(name)
        digest = sha256(weight.dequantize().numpy().tobytes()).hexdigest()
        decoded[name] = {"choice": str(weight.choice), "sha256": digest}
    (folder / "decoded.json").write_text(json.dumps(decoded, indent=1) + "\n")
    (folder / "README.md").unlink()
    shutil.rmtree(folder / ".cache", ignore_errors=True)


if __name__ == "__main__":
    main()
