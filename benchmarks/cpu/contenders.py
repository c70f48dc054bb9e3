"""Kernels that multiply with quantized weights on the CPU: ours and those of other projects, each over many copies of a matrix.

A contender is made for a shape, a number of tokens and a number of threads, and gives a function that multiplies once with
every copy. Whoever is not installed, or does not know the case, says why.
"""

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitbudget.kernels import QuantLinear, use_kernels
from bitbudget.storage import NATIVE, Choice, StoredWeight

ROTATED_BYTES = 256 << 20  # more than any cache: no weight is met again before all others were read
GROUP = 128


# Of those who have threads of their own. It runs on all processors, whatever this one is bound to; and ggml configures the tiles of
# AMX once in every thread, which everyone else who uses them there, as we do, takes away.
OWN_THREAD = ThreadPoolExecutor(1, initializer=lambda: os.sched_setaffinity(0, range(os.cpu_count() or 1)))


def apart(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """The call, in that thread."""
    return OWN_THREAD.submit(function, *arguments, **named).result()


class Absent(Exception):
    """Why a contender does not run."""


@dataclass(frozen=True)
class Case:
    """One matrix product: weights [rows, columns], x [tokens, columns]."""

    rows: int
    columns: int
    tokens: int
    threads: int

    def copies(self, nbytes: int) -> int:
        """Of a matrix of so many bytes; with many tokens the products last so long that two do."""
        return 2 if self.tokens >= 256 else max(2, -(-ROTATED_BYTES // nbytes))


@dataclass(frozen=True)
class Contender:
    """run multiplies with each of `copies` matrices once; nbytes: of one of them, scales included."""

    run: Callable[[], object]
    copies: int
    nbytes: int


def ours(text: str, kernels: str) -> Callable[[Case], Contender]:
    """Our kernels for a choice; activations fp32."""

    def make(case: Case) -> Contender:
        weight = any_weight(text, (case.rows, case.columns))
        modules = [_packed(weight, kernels)]
        assert modules[0].packed is not None
        nbytes = modules[0].packed.nbytes
        modules += [_packed(weight, kernels) for _ in range(case.copies(nbytes) - 1)]
        # Two tensors in turn, so that every product rounds its own activations: what was made of the last one is remembered.
        xs = torch.randn(2, case.tokens, case.columns).unbind()
        return Contender(lambda: [each(xs[turn % 2]) for turn, each in enumerate(modules)], len(modules), nbytes)

    return make


def _packed(weight: StoredWeight, kernels: str) -> QuantLinear:
    module = QuantLinear.from_stored(weight)
    reasons = use_kernels(module, kernels)
    if reasons:
        raise Absent("; ".join(reasons.values()))
    return module


def any_weight(text: str, shape: tuple[int, int]) -> StoredWeight:
    """A weight stored by a choice with codes by chance; rounding a real one would take long and change no time."""
    choice, generator = Choice.parse(text), torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    parts = torch.randperm(shape[0], generator=generator)
    taken = 0
    for spec in NATIVE.specs(choice, shape):
        last = spec.name.rpartition(".")[2]
        if last == "rows":
            tensors[spec.name] = parts[taken : taken + spec.shape[0]].sort().values.to(spec.dtype)
            taken += spec.shape[0]
        elif last == "row_pointers":
            stored = tensors["outliers.values"].numel()
            tensors[spec.name] = (torch.arange(shape[0] + 1) * stored // shape[0]).to(spec.dtype)
        elif last == "columns":
            tensors[spec.name] = torch.randint(shape[1], spec.shape, generator=generator).to(spec.dtype)
        elif spec.dtype == torch.int32:
            tensors[spec.name] = torch.randint(-(2**31), 2**31, spec.shape, generator=generator, dtype=torch.int64).to(
                torch.int32
            )
        else:
            tensors[spec.name] = (torch.rand(spec.shape, generator=generator) * 0.01 + 0.001).to(spec.dtype)
    return StoredWeight.from_tensors(choice, shape, tensors)


def torch_int4(case: Case) -> Contender:
    """aten::_weight_int4pack_mm_for_cpu: groups of 128, bf16 scales and zeros, bf16 activations."""
    pack = _operator("_convert_weight_to_int4pack_for_cpu")
    multiply = _operator("_weight_int4pack_mm_for_cpu")
    codes = torch.randint(16, (case.rows, case.columns), dtype=torch.int32)
    packed, scales = pack(codes, 1), torch.rand(case.columns // GROUP, case.rows, 2).bfloat16()
    nbytes = packed.nbytes + scales.nbytes
    weights = [(packed.clone(), scales.clone()) for _ in range(case.copies(nbytes))]
    x = torch.randn(case.tokens, case.columns).bfloat16()
    return Contender(lambda: [multiply(x, one, GROUP, two) for one, two in weights], len(weights), nbytes)


def torch_int8(case: Case) -> Contender:
    """aten::_weight_int8pack_mm: a scale a row, bf16 activations."""
    multiply = _operator("_weight_int8pack_mm")
    weights = torch.randint(-128, 128, (case.rows, case.columns), dtype=torch.int8)
    scales = torch.rand(case.rows).bfloat16()
    nbytes = weights.nbytes + scales.nbytes
    copies = [weights.clone() for _ in range(case.copies(nbytes))]
    x = torch.randn(case.tokens, case.columns).bfloat16()
    return Contender(lambda: [multiply(x, each, scales) for each in copies], len(copies), nbytes)


def torch_dynamic(case: Case) -> Contender:
    """quantized::linear_dynamic (FBGEMM): a scale a row, activations rounded to int8 at run time."""
    weight, scales = torch.randn(case.rows, case.columns), torch.rand(case.rows, dtype=torch.float64) * 0.01 + 0.01
    x = torch.randn(case.tokens, case.columns)
    multiply = torch.ops.quantized.linear_dynamic
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that quantized tensors are going to be removed
            zeros = torch.zeros(case.rows, dtype=torch.int64)
            quantized = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        packed = [torch.ops.quantized.linear_prepack(quantized, None) for _ in range(case.copies(weight.numel()))]
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        raise Absent(f"torch {torch.__version__}: {str(error).splitlines()[0]}") from error
    # Of other dtypes of scales and zeros it makes zeros, at once.
    exact, found = x[:1] @ quantized.dequantize().T, multiply(x[:1], packed[0], True)
    assert float((found - exact).norm() / exact.norm()) < 0.1
    return Contender(lambda: [multiply(x, each, True) for each in packed], len(packed), case.rows * (case.columns + 8))


def torch_dense(case: Case) -> Contender:
    """torch.nn.functional.linear in fp32."""
    weight = torch.randn(case.rows, case.columns)
    weights = [weight.clone() for _ in range(case.copies(weight.nbytes))]
    x = torch.randn(case.tokens, case.columns)
    return Contender(lambda: [torch.nn.functional.linear(x, each) for each in weights], len(weights), weight.nbytes)


def onnx_runtime(bits: int) -> Callable[[Case], Contender]:
    """MatMulNBits: groups of 128, fp32 scales, no zeros, accuracy level 4 (int8 activations), in a graph with a node a copy."""

    def make(case: Case) -> Contender:
        try:
            import onnxruntime
            from onnx_graph import graph_of_products
        except ImportError as error:
            raise Absent(str(error)) from error
        nbytes = case.rows * (case.columns * bits // 8 + 4 * case.columns // GROUP)
        copies = case.copies(nbytes)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = case.threads, 1
        options.log_severity_level = 3
        model = graph_of_products((case.rows, case.columns), bits, GROUP, copies)
        session = apart(onnxruntime.InferenceSession, model, options, providers=["CPUExecutionProvider"])
        x = torch.randn(case.tokens, case.columns).numpy()
        return Contender(lambda: apart(session.run, None, {"x": x}), copies, nbytes)

    return make


def _operator(name: str) -> Callable[..., Tensor]:
    found = getattr(torch.ops.aten, name, None)
    if found is None:
        raise Absent(f"torch {torch.__version__} has no aten::{name}")
    operator: Callable[..., Tensor] = found
    return operator
