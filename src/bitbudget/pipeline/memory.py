"""What a model takes in memory beside its stored tensors while it writes: the promise of `--memory`, kept by `run`.

The model is asked: its own forward runs on the meta device, where shapes are computed and nothing is allocated, and the
bytes of the tensors that live at once are counted (`live.py`). What happens inside an operation is added: a stored
weight is decoded (`kernels/reference.py`), and attention is fused. It holds for every choice but activation formats.

A prompt goes in in chunks, so the most is held when the last chunk meets a context that is otherwise full.
"""

import inspect
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from bitbudget.errors import InputError
from bitbudget.heap import LARGE_BYTES, TRIM_BYTES
from bitbudget.models.source import SourceModel
from bitbudget.pipeline.cache import reserved_cache
from bitbudget.pipeline.cache_size import kv_cache
from bitbudget.pipeline.live import LiveBytes
from bitbudget.storage.parts import DECODED_AT_ONCE
from bitbudget.storage.stored import TILE_BYTES

PROMPT_CHUNK = 512  # tokens of a prompt that go through the model at once
CUDA_RESERVE = 600 << 20  # the context of a CUDA process with the workspaces of its libraries

DECODING_BYTES = 28  # a weight of a few rows: the sum, the part, scale and zero in fp32, its code and the unpacking
SAMPLING_COPIES = 8  # of one position's logits in fp32: scores, their probabilities, sorted ones with their order
# Of fused attention on the CPU: a tile of scores in fp32 and one in the values' dtype, and rows of results, a thread.
ATTENTION_TILE = (64, 512)
LIBRARIES_BYTES = 14 << 20  # what torch's libraries make at their first products
OBJECTS_BYTES = 16 << 10  # Python's objects of a layer
HEAP_HOLES = 4  # between small tensors of changing sizes; a share of 1/4 of them
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
MULTIPLICATIONS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)


class UnknownMemory(InputError):
    """A model of which nobody can tell beforehand what it keeps while it writes."""


@dataclass(frozen=True)
class MemoryPromise:
    """Bytes beside the stored tensors, for one sequence of `context` tokens whose prompt comes in chunks of `chunk`.

    kv_cache: keys and values of a full context, in `kv_dtype`. activations: what the model's own code holds at once
    beyond that. workspace: what decoding stored weights adds to it. reserve: for what is not computed.
    """

    context: int
    chunk: int
    kv_dtype: str
    kv_cache: int
    activations: int
    workspace: int
    reserve: int

    @property
    def beside_weights(self) -> int:
        return self.kv_cache + self.activations + self.workspace + self.reserve

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"beside_weights": self.beside_weights}


def memory_promise(
    source: SourceModel,
    context: int | None,
    kv_dtype: str | None,
    device: torch.device,
    reserve: int | None,
    dtype: torch.dtype | None = None,
) -> MemoryPromise:
    """What a run of the model takes at most beside the stored tensors, however its layers are stored.

    context: tokens of prompt and answer, by default the model's longest, at most 8,192. kv_dtype: as in `kv_cache`, by
    default the dtype that it runs in, which by default is the model's own. reserve: bytes, by default none on the CPU
    and 600 MiB on a CUDA device.

    Raises:
        UnknownMemory: the model's cache or forward pass cannot be asked, with the reason.
        InputError: a context or dtype that cannot be.
    """
    dtype = dtype or source.dtype
    if dtype not in NAMES:
        raise UnknownMemory(f"{source.folder} runs in {dtype}, of which no key-value cache is known.")
    cache = kv_cache(source, context, kv_dtype or NAMES[dtype])
    if cache.nbytes is None:
        raise UnknownMemory(
            f"The key-value cache of {source.folder} is not known, so no memory can be promised: {cache.unknown}."
        )
    chunk = min(PROMPT_CHUNK, cache.context)
    found = _traced(source, dtype, cache.context, chunk, device)
    own = cache if cache.dtype == NAMES[dtype] else kv_cache(source, cache.context, NAMES[dtype])
    activations = max(found.held - (own.nbytes or 0), _sampling(source))
    return MemoryPromise(
        context=cache.context,
        chunk=chunk,
        kv_dtype=cache.dtype,
        kv_cache=cache.nbytes,
        activations=activations + _computed_buffers(source) + _converted(source, dtype),
        workspace=found.within - found.held + _process(source, found),
        reserve=(0 if device.type == "cpu" else CUDA_RESERVE) if reserve is None else reserve,
    )


@dataclass(frozen=True)
class Traced:
    """Most bytes in a forward of the last chunk, the cache included: of the tensors of the model's own code, and
    together with what operations take; and of small tensors that come and go.
    """

    held: int
    within: int
    changing_small: int

    def __mul__(self, factor: int) -> "Traced":
        return Traced(factor * self.held, factor * self.within, factor * self.changing_small)


def _traced(source: SourceModel, dtype: torch.dtype, context: int, chunk: int, device: torch.device) -> Traced:
    try:
        return _trace(source.skeleton(dtype), context, chunk, device)
    # A model's forward raises whatever it likes on tensors without values. Grouped products of experts know no shapes
    # for fp32, and half the width has at least half the bytes.
    except Exception as error:
        if dtype != torch.float32:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise UnknownMemory(
                f"The forward pass of {source.folder} could not be asked what it holds, so no memory can be promised: "
                f"{reason}."
            ) from error
    return _traced(source, torch.bfloat16, context, chunk, device) * 2


def _trace(model: PreTrainedModel, context: int, chunk: int, device: torch.device) -> Traced:
    model = model.to("meta")
    weights = {tensor.untyped_storage()._cdata for tensor in model.parameters()}
    known = (*model.parameters(), *model.buffers())
    live = LiveBytes(known, lambda *call: _within(weights, *call), LARGE_BYTES)
    keep = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    with torch.no_grad(), torch.device("meta"), live, FusedAttention(device):
        cache = reserved_cache(model.config, context, chunk)
        if cache is None:
            raise ValueError("some of its blocks keep more than the keys and values of all or of the last tokens")
        if context > chunk:
            _forward(model, context - chunk, cache, keep)
            live.forget_peaks()
        _forward(model, chunk, cache, keep)
    kept = [tensor.untyped_storage().nbytes() for layer in cache.layers for tensor in (layer.keys, layer.values)]
    small = sum(nbytes for nbytes in kept if nbytes < LARGE_BYTES)
    return Traced(live.peak.total, live.peak_within.total, live.peak_within.small - small)


def _forward(model: PreTrainedModel, tokens: int, cache: Any, keep: dict[str, int]) -> None:
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    model(input_ids=ids, use_cache=True, **{cache_name(model): cache}, **keep)


def cache_name(model: PreTrainedModel) -> str:
    """What this version of transformers calls the cache."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _within(weights: set[int], operation: Any, arguments: tuple[Any, ...]) -> tuple[int, ...]:
    """What an operation takes for itself if its weight is a stored one."""
    if operation in MULTIPLICATIONS:
        x, weight = arguments[-2:]
        if weight.untyped_storage()._cdata in weights:
            return linear_workspace(x, weight)
    if operation is torch.ops.aten.embedding.default:
        return lookup_workspace(*arguments[:2])
    return ()


def linear_workspace(x: Tensor, weight: Tensor) -> tuple[int, ...]:
    """Bytes of the tensors of `reference.linear` beside x [..., tokens, in] and the result; weight [..., in, out].

    A tile of rows and the product with it, and x or the result once more where the choice has a map.
    """
    columns, rows = weight.shape[-2:]
    tokens = x.numel() // columns
    width = weight.dtype.itemsize
    tile = min(rows, max(1, TILE_BYTES // (4 * columns)))
    mapped = tokens * columns, tokens * max(0, rows - tile)
    return tuple(width * count for count in (tile * columns, tokens * tile, *mapped)) + _decoding(rows, columns)


def lookup_workspace(weight: Tensor, ids: Tensor) -> tuple[int, ...]:
    """Bytes of the tensors of `reference.lookup` beside the result: rows that occur and those of every place, in fp32."""
    rows, columns = weight.shape
    found = min(rows, ids.numel())
    return 4 * found * columns, 4 * ids.numel() * columns, 24 * ids.numel(), *_decoding(rows, columns)


def _decoding(rows: int, columns: int) -> tuple[int, ...]:
    """A few rows while they are decoded, and the numbers of all rows."""
    weights = min(rows * columns, max(columns, DECODED_AT_ONCE))
    return 16 * rows, *[weights] * DECODING_BYTES


def _process(source: SourceModel, found: Traced) -> int:
    """What a process takes for these tensors beside them."""
    heap = found.changing_small // HEAP_HOLES + TRIM_BYTES
    return heap + LIBRARIES_BYTES + OBJECTS_BYTES * len(source.layers)


def _sampling(source: SourceModel) -> int:
    return 4 * SAMPLING_COPIES * int(source.model.get_input_embeddings().weight.shape[0])


def _computed_buffers(source: SourceModel) -> int:
    """Buffers that stand in no file: frequencies of rotary positions and the like."""
    kept = source.model.state_dict().keys()
    return sum(buffer.nbytes for name, buffer in source.model.named_buffers() if name not in kept)


def _converted(source: SourceModel, dtype: torch.dtype) -> int:
    """Copies of what is kept in another dtype than the model runs in; all else is read in place, in the files.

    Of a model that is not stored yet its blocks' linears are left out: they are going to be.
    """
    stored = set() if source.is_native else {layer.tensor for layer in source.layers if layer.kind == "linear"}
    kept = [info for name, info in source.checkpoint.tensors.items() if name in source.parameters.recipe_of]
    other = [info for info in kept if info.dtype != dtype and info.name not in stored]
    return sum(math.prod(info.shape) * dtype.itemsize for info in other)


class FusedAttention(TorchFunctionMode):
    """Takes the place of attention on the meta device, which would make all scores; the fused kernels make none.

    Held are the mask in a float dtype, and on the CPU in bf16 keys and values once more, in the order that its matrix
    units want. Where values have another width than keys there is no fused kernel.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._on_cpu = device.type == "cpu"

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention and _can_be_fused(*args[:3]):
            return self._attend(*args, **kwargs)
        return func(*args, **kwargs)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
        batch, heads, tokens, width = query.shape
        result = query.new_empty(batch, tokens, heads, width).transpose(1, 2)
        held = [query.new_empty(batch, tokens, heads, dtype=torch.float32)]
        if attn_mask is not None:
            held.append(attn_mask.new_empty(attn_mask.shape, dtype=query.dtype))
        if self._on_cpu:
            rows, columns = ATTENTION_TILE
            held.append(query.new_empty(torch.get_num_threads(), rows, 6 * columns + 8 * width, dtype=torch.uint8))
        if self._on_cpu and query.dtype == torch.bfloat16:
            held += [key.new_empty(key.shape), value.new_empty(value.shape)]
        return result


def _can_be_fused(query: Tensor, key: Tensor, value: Tensor) -> bool:
    return query.dim() == 4 and query.shape[-1] == key.shape[-1] == value.shape[-1]
