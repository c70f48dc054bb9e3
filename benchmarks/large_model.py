"""A random Llama checkpoint of about 3 GiB: quantized and verified in how much memory, and is the forecast exact?

    python benchmarks/large_model.py [--folder DIR] [--choice int4:g128]

Writes benchmarks/results/large_model.json. The checkpoint (hidden 2048, intermediate 8192, 25 blocks, 32/8 heads of 64,
vocabulary 32,000 untied, bf16, shards cut across blocks) is made once and kept in the folder.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch
from sampling import sampled

from bitbudget.checkpoint.write import ShardWriter, index_json, plan_shards, write_atomic
from bitbudget.data import demo_model_folder
from bitbudget.storage import TensorSpec

HIDDEN, INTERMEDIATE, BLOCKS, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 2048, 8192, 25, 32, 8, 64, 32_000
SHARD_BYTES = 700 * 10**6
RESULT = Path(__file__).parent / "results" / "large_model.json"


def specs() -> list[TensorSpec]:
    """Tensors of the checkpoint in the order of its blocks."""
    queries, keys = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    linears = {
        "self_attn.q_proj": (queries, HIDDEN),
        "self_attn.k_proj": (keys, HIDDEN),
        "self_attn.v_proj": (keys, HIDDEN),
        "self_attn.o_proj": (HIDDEN, queries),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (VOCABULARY, HIDDEN)}
    shapes |= {f"model.layers.{i}.{name}": shape for i in range(BLOCKS) for name, shape in linears.items()}
    shapes |= {"model.norm": (HIDDEN,), "lm_head": (VOCABULARY, HIDDEN)}
    return [TensorSpec(f"{name}.weight", torch.bfloat16, shape) for name, shape in shapes.items()]


def make(folder: Path) -> None:
    """Write the checkpoint; every tensor has its own seed."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = plan_shards([(spec,) for spec in specs()], SHARD_BYTES)
    for shard in shards:
        with ShardWriter(folder, shard) as writer:
            for number, spec in enumerate(shard.specs):
                generator = torch.Generator().manual_seed(hash_of(shard.filename, number))
                scale = HIDDEN**-0.5 if len(spec.shape) == 2 else 0.0
                values = torch.randn(spec.shape, generator=generator).mul_(scale).add_(0.0 if scale else 1.0)
                writer.write(spec.name, values.bfloat16())
    write_atomic(folder / "model.safetensors.index.json", index_json(shards))
    config = json.loads((demo_model_folder() / "config.json").read_text())
    config |= {
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
    }
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(demo_model_folder() / name, folder / name)
    write_atomic(folder / "config.json", json.dumps(config, indent=2).encode())


def hash_of(filename: str, number: int) -> int:
    """A seed for a tensor."""
    return int(filename.removeprefix("model-")[:5]) * 10_000 + number


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--folder", type=Path, default=Path("/tmp/bitbudget-large"))
    arguments.add_argument("--choice", default="int4:g128")
    options = arguments.parse_args()
    source, output = options.folder / "source", options.folder / "quantized"
    if not (source / "config.json").is_file():
        make(source)
    shutil.rmtree(output, ignore_errors=True)
    tool = [sys.executable, "-m", "bitbudget"]
    forecast = sampled([*tool, "forecast", str(source), "--json"])
    run = sampled([*tool, "quantize", str(source), "--choice", options.choice, "-o", str(output)])
    log = json.loads((options.folder / "quantized.run.jsonl").read_text().splitlines()[-1])
    check = sampled([*tool, "verify", str(output), "--against", str(source)])
    rows = json.loads(forecast.output[forecast.output.index("{") :])["rows"]
    predicted = next(row for row in rows if row["choice"] == options.choice)
    record = json.loads((output / "bitbudget.json").read_text())
    written = [*output.glob("*.safetensors"), *output.glob("*.index.json")]
    result = {
        "choice": options.choice,
        "source_bytes": sum(path.stat().st_size for path in source.glob("*.safetensors")),
        "forecast_weights_bytes": predicted["weights_bytes"],
        "saved_weights_bytes": record["output"]["weights_bytes"],
        "forecast_disk_bytes": predicted["disk_bytes"],
        "saved_disk_bytes": sum(path.stat().st_size for path in written),
        "verification": record["verification"],
        "quantize_seconds": round(run.seconds, 1),
        "quantize_stage_seconds": log["seconds"],
        "quantize_peak_mib": round(run.peak_bytes / 2**20),
        "verify_seconds": round(check.seconds, 1),
        "verify_peak_mib": round(check.peak_bytes / 2**20),
        "forecast_stages": json.loads(forecast.output[forecast.output.index("{") :])["stages"],
        "forecast_seconds": round(forecast.seconds, 1),
        "exit_codes": [forecast.code, run.code, check.code],
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
