"""llama.cpp's matrix products through the C interface of its library ggml, called with ctypes.

The libraries libggml-base.so and libggml-cpu.so come from the package llama-cpp-python, or from the folder that the environment
variable GGML_LIBRARIES names: `cmake -S llama.cpp/ggml -DGGML_OPENMP=OFF` builds them. With OpenMP they would share our threads;
GCC 12 leaves the tile shapes out of amx/mmq.cpp, where it needs `-fno-tree-dse -fno-dse`. A model's weights go into a buffer type
that repacks them, if there is one that takes them, so plain and repacked weights are contenders.
"""

import ctypes
import functools
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contenders import Absent, Case, Contender, apart

TYPES = {"q4_0": 2, "q8_0": 8, "q2_K": 10, "q3_K": 11, "q4_K": 12, "iq2_xxs": 16, "iq3_xxs": 18, "tq2_0": 35}
F32 = 0
QUANTIZED_ROWS = 64  # as many different rows; the others repeat them
OVERHEAD = 1 << 20
Pointer, Size, Number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64


class Parameters(ctypes.Structure):
    """ggml_init_params"""

    _fields_ = [("mem_size", Size), ("mem_buffer", Pointer), ("no_alloc", ctypes.c_bool)]


def llama_cpp(kind: str, buffers: str | None = None) -> Callable[[Case], Contender]:
    """Products with weights of a ggml type; activations fp32, which it rounds by itself. buffers: the name of a repacking type."""

    def make(case: Case) -> Contender:
        ggml = library()
        rows = quantized(ggml, kind, case.columns)
        nbytes = case.rows * (rows.numel() // QUANTIZED_ROWS)
        copies = case.copies(nbytes)
        backend = ggml.ggml_backend_cpu_init()
        ggml.ggml_backend_cpu_set_n_threads(backend, case.threads)
        own = [_context(ggml, copies + 8), _context(ggml, 4 * copies + 64)]
        weights = [ggml.ggml_new_tensor_2d(own[0], TYPES[kind], case.columns, case.rows) for _ in range(copies)]
        if buffers is None:
            ggml.ggml_backend_alloc_ctx_tensors(own[0], backend)
        else:
            ggml.ggml_backend_alloc_ctx_tensors_from_buft(own[0], _repacking(ggml, kind, buffers, case))
        data = rows.repeat(-(-case.rows // QUANTIZED_ROWS))[:nbytes].contiguous()
        for weight in weights:
            ggml.ggml_backend_tensor_set(weight, data.data_ptr(), 0, nbytes)
        x = ggml.ggml_new_tensor_2d(own[1], F32, case.columns, case.tokens)
        graph = ggml.ggml_new_graph_custom(own[1], copies + 16, False)
        for weight in weights:
            ggml.ggml_build_forward_expand(graph, ggml.ggml_mul_mat(own[1], weight, x))
        ggml.ggml_backend_alloc_ctx_tensors(own[1], backend)
        values = torch.randn(case.tokens, case.columns)
        ggml.ggml_backend_tensor_set(x, values.data_ptr(), 0, values.nbytes)
        return Contender(lambda: apart(ggml.ggml_backend_graph_compute, backend, graph), copies, nbytes)

    return make


@functools.cache
def library() -> Any:
    """ggml with the types of the functions used here. Raises Absent."""
    folder = os.environ.get("GGML_LIBRARIES")
    if folder is None:
        package = importlib.util.find_spec("llama_cpp")
        if package is None or package.origin is None:
            raise Absent("llama-cpp-python is not installed, and GGML_LIBRARIES names no folder")
        folder = str(Path(package.origin).parent / "lib")
    try:
        ctypes.CDLL(f"{folder}/libggml-base.so", mode=ctypes.RTLD_GLOBAL)
        ggml = ctypes.CDLL(f"{folder}/libggml-cpu.so", mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise Absent(str(error)) from error
    types = {
        "ggml_init": (Pointer, [Parameters]),
        "ggml_new_tensor_2d": (Pointer, [Pointer, ctypes.c_int, Number, Number]),
        "ggml_mul_mat": (Pointer, [Pointer, Pointer, Pointer]),
        "ggml_new_graph_custom": (Pointer, [Pointer, Size, ctypes.c_bool]),
        "ggml_build_forward_expand": (None, [Pointer, Pointer]),
        "ggml_row_size": (Size, [ctypes.c_int, Number]),
        "ggml_quantize_chunk": (Size, [ctypes.c_int, Pointer, Pointer, Number, Number, Number, Pointer]),
        "ggml_backend_cpu_init": (Pointer, []),
        "ggml_backend_cpu_set_n_threads": (None, [Pointer, ctypes.c_int]),
        "ggml_backend_alloc_ctx_tensors": (Pointer, [Pointer, Pointer]),
        "ggml_backend_alloc_ctx_tensors_from_buft": (Pointer, [Pointer, Pointer]),
        "ggml_backend_tensor_set": (None, [Pointer, Pointer, Size, Size]),
        "ggml_backend_graph_compute": (ctypes.c_int, [Pointer, Pointer]),
        "ggml_backend_cpu_reg": (Pointer, []),
        "ggml_backend_reg_dev_get": (Pointer, [Pointer, Size]),
        "ggml_backend_reg_get_proc_address": (Pointer, [Pointer, ctypes.c_char_p]),
        "ggml_backend_buft_name": (ctypes.c_char_p, [Pointer]),
        "ggml_backend_buffer_free": (None, [Pointer]),
        "ggml_backend_dev_supports_op": (ctypes.c_bool, [Pointer, Pointer]),
        "ggml_log_set": (None, [Pointer, Pointer]),
    }
    for name, (result, arguments) in types.items():
        function = getattr(ggml, name)
        function.restype, function.argtypes = result, arguments
    ggml.ggml_log_set(ctypes.cast(_silence, Pointer), None)
    return ggml


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, Pointer)
def _silence(level: int, text: bytes, data: int) -> None:
    """A line for every tensor."""


def _context(ggml: Any, tensors: int) -> int:
    found: int = ggml.ggml_init(Parameters(OVERHEAD + 2048 * tensors, None, True))
    return found


def _repacking(ggml: Any, kind: str, name: str, case: Case) -> int:
    """The buffer type of that name. Raises Absent where it does not multiply with such weights."""
    registry = ggml.ggml_backend_cpu_reg()
    device = ggml.ggml_backend_reg_dev_get(registry, 0)
    address = ggml.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    kinds = ctypes.CFUNCTYPE(ctypes.POINTER(Pointer), Pointer)(address)(device)
    place = 0
    while kinds and kinds[place]:
        if ggml.ggml_backend_buft_name(kinds[place]).decode() == name:
            weights, others = _context(ggml, 4), _context(ggml, 4)
            weight = ggml.ggml_new_tensor_2d(weights, TYPES[kind], case.columns, case.rows)
            held = ggml.ggml_backend_alloc_ctx_tensors_from_buft(weights, kinds[place])
            product = ggml.ggml_mul_mat(others, weight, ggml.ggml_new_tensor_2d(others, F32, case.columns, case.tokens))
            fits = bool(held) and ggml.ggml_backend_dev_supports_op(device, product)
            if held:
                ggml.ggml_backend_buffer_free(held)
            if fits:
                found: int = kinds[place]
                return found
        place += 1
    raise Absent(f"ggml repacks no {kind} into {name} for this processor")


def quantized(ggml: Any, kind: str, columns: int) -> torch.Tensor:
    """Bytes of some rows."""
    values, importance = torch.randn(QUANTIZED_ROWS, columns), torch.ones(columns)
    found = torch.empty(QUANTIZED_ROWS * ggml.ggml_row_size(TYPES[kind], columns), dtype=torch.uint8)
    ggml.ggml_quantize_chunk(
        TYPES[kind], values.data_ptr(), found.data_ptr(), 0, QUANTIZED_ROWS, columns, importance.data_ptr()
    )
    return found
