"""How fast are our matrix products beside those of others, and how far from what the machine can do?

python benchmarks/cpu/products.py [--tokens 1 8 512] [--threads 1 2] [--shapes 4096x4096 11008x4096] [--rounds 9] [--name NAME]

The machine has to be idle: where another program wants a core, two threads wait for each other and all times are worthless.
All contenders of a case run alternately in one sitting, a pass over every copy of the matrix at a time, with 256 MiB of copies
so that weights come from memory. Recorded are medians of the passes, ratios of the best peer's median to ours, the machine's
bandwidth and its rates of int8 multiply-adds (VNNI, and AMX where there is any) measured before and after each case, and a roofline
plot: results/NAME.json, .md, .png. Cases that were recorded on this machine before and are not measured anew stay.
"""

import argparse
import functools
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before torch: unbound threads of ours share a core now and then, which takes two to three times as long.
os.environ |= {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}

import contenders as c
import torch
from llama import llama_cpp
from products_report import plot, table

from bitbudget.kernels import best_isa
from bitbudget.pipeline.bench import bandwidth

HERE = Path(__file__).parent
WIDTHS = (2, 3, 4, 8)
PEERS = {
    2: {"onnxruntime": c.onnx_runtime(2)},
    3: {},
    4: {"onnxruntime": c.onnx_runtime(4), "torch int4pack": c.torch_int4},
    8: {"onnxruntime": c.onnx_runtime(8), "torch int8pack": c.torch_int8, "torch dynamic": c.torch_dynamic},
}
LLAMA = {2: ("tq2_0", "q2_K", "iq2_xxs"), 3: ("q3_K", "iq3_xxs"), 4: ("q4_0", "q4_K"), 8: ("q8_0",)}
REPACKING = ("AMX", "CPU_REPACK")  # ggml's buffer types
OURS = {f"ours {kernels}": kernels for kernels in ("a8", "a16")}
# What a mix of widths and outliers cost beside uniform layers.
COMPOSED = {
    "int8": c.ours("int8:g128", "a8"),
    "int4": c.ours("int4:g128", "a8"),
    "int8 for 10 % of rows, int4": c.ours("int8:g128*10%|int4:g128", "a8"),
    "int4 with 0.5 % outliers": c.ours("int4:g128+outliers:0.5%", "a8"),
    "int2": c.ours("int2:g128", "a8"),
    "int2 with 0.5 % outliers": c.ours("int2:g128+outliers:0.5%", "a8"),
}
PAUSE = 0.05  # seconds, in which the threads of the last contender that spin for more work give up


def main() -> None:
    asked = arguments()
    shapes = [tuple(int(side) for side in shape.split("x")) for shape in asked.shapes]
    cases = recorded(asked.name)
    for rows, columns in shapes:
        for tokens in asked.tokens:
            for threads in asked.threads:
                case = c.Case(rows, columns, tokens, threads)
                for bits in asked.bits:
                    makers = {name: c.ours(f"int{bits}:g128", kernels) for name, kernels in OURS.items()}
                    keep(cases, measured(case, f"{bits} bits", makers | peers(bits), asked.rounds))
                keep(cases, measured(case, "composed", COMPOSED, asked.rounds))
                save(asked.name, cases)


def peers(bits: int) -> dict[str, Callable[[c.Case], c.Contender]]:
    """Those who have kernels of that width."""
    llama = {f"llama.cpp {kind}": llama_cpp(kind) for kind in LLAMA[bits]}
    repacked = {f"llama.cpp {kind} {into}": llama_cpp(kind, into) for kind in LLAMA[bits] for into in REPACKING}
    return PEERS[bits] | llama | repacked


def measured(case: c.Case, title: str, makers: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Times of all contenders, seconds a product."""
    torch.set_num_threads(case.threads)
    before = limits(case.threads)
    running, absent = {}, {}
    for name, make in makers.items():
        try:
            running[name] = make(case)
            running[name].run()
        except c.Absent as reason:
            absent[name] = str(reason)
    times: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(rounds):
        for name, contender in running.items():
            time.sleep(PAUSE)
            began = time.perf_counter()
            contender.run()
            times[name].append((time.perf_counter() - began) / contender.copies)
    found = {
        name: {"seconds": statistics.median(taken), "least": min(taken), "passes": len(taken), "copies": running[name].copies,
               "nbytes": running[name].nbytes}
        for name, taken in times.items()
    }  # fmt: skip
    record = {
        "rows": case.rows,
        "columns": case.columns,
        "tokens": case.tokens,
        "threads": case.threads,
        "title": title,
    }
    print(
        f"{case} {title}:",
        {name: round(1e6 * entry["seconds"]) for name, entry in found.items()},
        absent or "",
        flush=True,
    )
    return record | {"contenders": found, "absent": absent, "limits": [before, limits(case.threads)]}


def limits(threads: int) -> dict[str, float | None]:
    """Bytes a second from memory, and operations a second of int8 multiply-adds; None where there are no such instructions."""
    torch.set_num_threads(threads)
    return {"bandwidth": bandwidth()} | operations(threads)


def operations(threads: int) -> dict[str, float | None]:
    """Of vectors (VNNI) and of tiles (AMX)."""
    program = peak_program()
    if program is None:
        return {"vnni": None, "amx": None}
    done = subprocess.run([program, str(threads)], capture_output=True, text=True, check=True)
    vnni, amx = (1e9 * float(word) for word in done.stdout.split())
    return {"vnni": vnni, "amx": amx or None}


@functools.cache
def peak_program() -> Path | None:
    """peak.cpp, compiled."""
    program = Path(tempfile.mkdtemp()) / "peak"
    flags = ("-O3", "-mavx512f", "-mavx512vnni", "-mamx-tile", "-mamx-int8", "-pthread")
    done = subprocess.run(["g++", *flags, str(HERE / "peak.cpp"), "-o", str(program)], capture_output=True)
    return program if best_isa() == "avx512_vnni" and done.returncode == 0 else None


def recorded(name: str) -> list[dict[str, Any]]:
    path = HERE / "results" / f"{name}.json"
    document = json.loads(path.read_text()) if path.is_file() else {"machine": None}
    return document["cases"] if document["machine"] == machine() else []


def keep(cases: list[dict[str, Any]], new: dict[str, Any]) -> None:
    """In the place of the same case, in order."""
    names = ("rows", "columns", "tokens", "threads", "title")
    cases[:] = [case for case in cases if any(case[name] != new[name] for name in names)] + [new]
    cases.sort(key=lambda case: [case[name] for name in names])


def save(name: str, cases: list[dict[str, Any]]) -> None:
    document = {"machine": machine(), "cases": cases}
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    (HERE / "results" / f"{name}.md").write_text(table(document))
    plot(document, HERE / "results" / f"{name}.png")


def machine() -> dict[str, str]:
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": str(os.cpu_count()),
        "isa": str(best_isa()),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 512])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--shapes", nargs="+", default=["4096x4096", "11008x4096"])
    parser.add_argument("--bits", type=int, nargs="+", default=list(WIDTHS), choices=WIDTHS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--name", default="products")
    return parser.parse_args()


if __name__ == "__main__":
    main()
