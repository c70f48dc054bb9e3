"""Tokens a second of llama.cpp for a model of the shape that generation.py measures ours with.

LLAMA_BENCH=… GGML_LIBRARIES=… python benchmarks/cpu/generation_llama.py [--types q4_0 q2_K …] [--threads 1 2] [--name NAME]

LLAMA_BENCH is llama.cpp's program llama-bench; the package gguf writes the files. Weights are 64 random rows a matrix, repeated, as
`llama.py` quantizes them; embedding and head are of the same type. Recorded in results/NAME.json.
"""

import argparse
import json
import os
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from llama import QUANTIZED_ROWS, TYPES, library, quantized

HERE = Path(__file__).parent
VOCABULARY, WIDTH, INSIDE, HEADS, KEYS = 32_000, 2048, 5632, 32, 4
HEAD = WIDTH // HEADS
BLOCK = {
    "attn_q": (WIDTH, WIDTH), "attn_k": (KEYS * HEAD, WIDTH), "attn_v": (KEYS * HEAD, WIDTH), "attn_output": (WIDTH, WIDTH),
    "ffn_gate": (INSIDE, WIDTH), "ffn_up": (INSIDE, WIDTH), "ffn_down": (WIDTH, INSIDE),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", nargs="+", default=["q4_0", "q4_K", "q3_K", "q2_K", "tq2_0"], choices=list(TYPES))
    parser.add_argument("--threads", nargs="+", default=["1", "2"])
    parser.add_argument("--blocks", type=int, default=22)
    parser.add_argument("--name", default="generation_llama")
    asked = parser.parse_args()
    found = []
    for kind in asked.types:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            write(path, kind, asked.blocks)
            command = [os.environ["LLAMA_BENCH"], "-m", str(path), "-p", "0", "-n", "32", "-r", "3", "-o", "json"]
            done = subprocess.run([*command, "-t", ",".join(asked.threads)], capture_output=True, text=True, check=True)
            for run in json.loads(done.stdout):
                found.append(record(kind, path.stat().st_size, run))
                print(found[-1], flush=True)
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"{asked.name}.json").write_text(json.dumps({"blocks": asked.blocks, "runs": found}, indent=1) + "\n")


def record(kind: str, nbytes: int, run: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": kind, "threads": run["n_threads"], "tokens_per_second": run["avg_ts"], "deviation": run["stddev_ts"],
        "file_bytes": nbytes, "build": run["build_commit"],
    }  # fmt: skip


def write(path: Path, kind: str, blocks: int) -> None:
    """A file without a vocabulary, which llama-bench does not need."""
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(blocks)
    writer.add_context_length(2048)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INSIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("no_vocab")
    matrices = {"token_embd": (VOCABULARY, WIDTH), "output": (VOCABULARY, WIDTH)}
    norms = ["output_norm"]
    for block in range(blocks):
        matrices |= {f"blk.{block}.{name}": shape for name, shape in BLOCK.items()}
        norms += [f"blk.{block}.attn_norm", f"blk.{block}.ffn_norm"]
    for name in norms:
        writer.add_tensor(f"{name}.weight", numpy.ones(WIDTH, dtype=numpy.float32))
    for name, (rows, columns) in matrices.items():
        data = quantized(library(), kind, columns).view(QUANTIZED_ROWS, -1)
        repeated = data.repeat(-(-rows // QUANTIZED_ROWS), 1)[:rows].contiguous()
        writer.add_tensor(f"{name}.weight", repeated.numpy(), raw_dtype=GGMLQuantizationType(TYPES[kind]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
