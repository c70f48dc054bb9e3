"""Bytes of the key-value cache: read from the config, and confirmed by the model's own cache before a number is given.

The model is asked on the meta device, where a forward of two tokens computes shapes only. What transformers'
DynamicCache holds after `context` tokens is counted: all of them in a full-attention block, the last `window - 1` in a
sliding-window block (the newest token joins them while it is computed).
"""

import math
from collections import Counter
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import torch
from transformers import PreTrainedConfig

from bitbudget.errors import InputError
from bitbudget.models.context import longest_context
from bitbudget.models.source import SourceModel

KV_DTYPES = MappingProxyType({"fp16": 2, "bf16": 2, "fp32": 4, "fp8": 1, "int8": 1})  # bytes a value, no scales
DEFAULT_CONTEXT_CAP = 8192  # a model may allow a million tokens; few are run with that many
WINDOW_NAMES = MappingProxyType({"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"})
CACHE_KINDS = MappingProxyType({"DynamicLayer": "full", "DynamicSlidingWindowLayer": "sliding"})
ASKED_TOKENS = 2


@dataclass(frozen=True)
class BlockCache:
    """What one block keeps: `window` None is full attention. Keys and values have the same heads and width."""

    heads: int
    head_width: int
    window: int | None = None

    def tokens(self, context: int) -> int:
        """Tokens held after `context` tokens."""
        return context if self.window is None else min(context, self.window - 1)


@dataclass(frozen=True)
class CacheGroup:
    """Equal blocks together; `nbytes` of all of them."""

    blocks: int
    window: int | None
    tokens: int
    heads: int
    head_width: int
    nbytes: int


@dataclass(frozen=True)
class KvCache:
    """The cache of one sequence of `context` tokens. `nbytes` is None where it is not known, and `unknown` says why."""

    context: int
    longest_context: int | None
    dtype: str
    nbytes: int | None
    groups: tuple[CacheGroup, ...] = ()
    unknown: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class _NotKnown(Exception):
    """The reason why no number can be given; never leaves this file."""


def kv_cache(source: SourceModel, context: int | None = None, dtype: str = "fp16") -> KvCache:
    """The cache of one sequence; context None: the model's longest, at most 8,192.

    Raises:
        InputError: an unknown dtype, or a context below 1 or beyond the model's longest.
    """
    if dtype not in KV_DTYPES:
        raise InputError(f"There is no key-value cache of type {dtype!r}. Write one of {', '.join(KV_DTYPES)}.")
    longest = longest_context(source.config)
    tokens = _context(context, longest)
    try:
        blocks = _confirmed(source, _from_config(source.config.get_text_config(decoder=True), source.block_count))
    except _NotKnown as reason:
        return KvCache(tokens, longest, dtype, None, unknown=str(reason))
    groups = tuple(_group(block, count, tokens, KV_DTYPES[dtype]) for block, count in Counter(blocks).items())
    return KvCache(tokens, longest, dtype, sum(group.nbytes for group in groups), groups)


def _context(asked: int | None, longest: int | None) -> int:
    if asked is None:
        return min(longest or DEFAULT_CONTEXT_CAP, DEFAULT_CONTEXT_CAP)
    if asked < 1:
        raise InputError(f"A context of {asked} tokens was asked for; it has to be 1 or more.")
    if longest is not None and asked > longest:
        raise InputError(
            f"A context of {asked} tokens was asked for, but the model's config names {longest} as its longest. "
            "Ask for fewer tokens with --context."
        )
    return asked


def _group(block: BlockCache, count: int, context: int, itemsize: int) -> CacheGroup:
    tokens = block.tokens(context)
    nbytes = count * 2 * tokens * block.heads * block.head_width * itemsize
    return CacheGroup(count, block.window, tokens, block.heads, block.head_width, nbytes)


def _from_config(config: PreTrainedConfig, block_count: int) -> tuple[BlockCache, ...]:
    """One entry a block, or the reason why the config does not say."""
    if getattr(config, "kv_lora_rank", None):
        raise _NotKnown("the model keeps latent vectors (multi-head latent attention), which engines store differently")
    heads = getattr(config, "num_attention_heads", None)
    width = getattr(config, "hidden_size", None)
    if not isinstance(heads, int) or not isinstance(width, int):
        raise _NotKnown("the config names no number of attention heads, or another one for every block")
    grouped = getattr(config, "num_key_value_heads", None) or heads
    head_width = getattr(config, "head_dim", None) or width // heads
    if not isinstance(grouped, int) or not isinstance(head_width, int):
        raise _NotKnown("the config names other key-value heads for every block")
    return tuple(BlockCache(grouped, head_width, window) for window in _windows(config, block_count))


def _windows(config: PreTrainedConfig, block_count: int) -> list[int | None]:
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ["full_attention" if window is None else "sliding_attention"] * block_count
    if len(kinds) != block_count:
        raise _NotKnown(f"the config names the attention of {len(kinds)} blocks, but the model has {block_count}")
    other = sorted(set(kinds) - {"full_attention", *WINDOW_NAMES})
    if other:
        raise _NotKnown(f"some blocks are of type {', '.join(map(repr, other))}, whose state the config does not size")
    windows = [getattr(config, WINDOW_NAMES[kind], None) if kind in WINDOW_NAMES else None for kind in kinds]
    for kind, size in zip(kinds, windows, strict=True):
        if kind in WINDOW_NAMES and (not isinstance(size, int) or size < 2):
            raise _NotKnown(f"blocks are of type {kind!r}, but the config names no window ({WINDOW_NAMES[kind]})")
    return windows


def _confirmed(source: SourceModel, blocks: tuple[BlockCache, ...]) -> tuple[BlockCache, ...]:
    """The same blocks, if the model's own cache looks as they promise."""
    kept = _own_cache(source)
    if len(kept) != len(blocks):
        raise _NotKnown(f"the model keeps a cache for {len(kept)} of its {len(blocks)} blocks")
    for index, (block, layer) in enumerate(zip(blocks, kept, strict=True)):
        kind = CACHE_KINDS.get(type(layer).__name__)
        if kind is None:
            raise _NotKnown(f"block {index} keeps a {type(layer).__name__}, whose size the config does not tell")
        expected = [1, block.heads, block.tokens(ASKED_TOKENS), block.head_width]
        found = [list(tensor.shape) for tensor in (layer.keys, layer.values)]
        window = layer.sliding_window if kind == "sliding" else None
        if found != [expected, expected] or window != block.window:
            raise _NotKnown(
                f"block {index} keeps keys and values of shape {found[0]} and {found[1]} for {ASKED_TOKENS} tokens "
                f"(window {window}), where the config promises {expected} (window {block.window})"
            )
    return blocks


def _own_cache(source: SourceModel) -> list[Any]:
    """The cache layers that the model's own forward fills, with tensors on the meta device."""
    try:
        # bf16, because the grouped matrix products of experts know no shapes for fp32.
        model = source.skeleton(torch.bfloat16).to("meta")
        ids = torch.zeros(1, ASKED_TOKENS, dtype=torch.long, device="meta")
        with torch.no_grad(), torch.device("meta"):
            cache = model(input_ids=ids, use_cache=True).past_key_values
        layers = list(cache.layers)
        sizes = [math.prod(tensor.shape) for layer in layers for tensor in (layer.keys, layer.values)]
    # A model's forward raises whatever it likes on tensors without values; the reason is told whatever its type.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise _NotKnown(f"the model's own cache could not be asked for its shapes ({reason})") from error
    if not all(sizes):
        raise _NotKnown("some blocks keep no keys and values of their own")
    return layers
