"""A key-value cache that is made once, for the whole context, and filled in place.

transformers' own grows by joining: for a moment every block's keys and values are there twice, every token copies all that
came before, and tensors of ever new sizes leave holes in the heap that can be as large as the cache.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


class Rows:
    """Keys or values [1, heads, tokens, width] of one block: room for `capacity` tokens, the last `window` of them kept.

    window None: all are kept, and capacity is the most that can come.
    """

    def __init__(self, like: Tensor, capacity: int, window: int | None) -> None:
        self._room = like.new_empty(*like.shape[:-2], capacity, like.shape[-1])
        self._window = window
        self._begin = self._end = 0

    @property
    def kept(self) -> Tensor:
        return self._room[..., self._begin : self._end, :]

    def append(self, new: Tensor) -> Tensor:
        """What was kept and the new ones behind it, which attention sees."""
        count, capacity = new.shape[-2], self._room.shape[-2]
        if self._end + count > capacity:
            assert self._window is not None, f"{self._end + count} tokens in a cache for {capacity}"
            if self._end - self._begin + count > capacity:
                return self._replace(new)
            kept = self.kept.clone()  # the two places may overlap
            self._begin, self._end = 0, kept.shape[-2]
            self._room[..., : self._end, :] = kept
        self._room[..., self._end : self._end + count, :] = new
        self._end += count
        seen = self.kept
        if self._window is not None:
            self._begin = max(self._begin, self._end - self._window)
        return seen

    def _replace(self, new: Tensor) -> Tensor:
        """More at once than there is room for: kept are the last ones."""
        seen = torch.cat([self.kept, new], dim=-2)
        capacity = self._room.shape[-2]
        self._begin, self._end = capacity - min(self._window or 0, capacity), capacity
        self._room[..., self._begin :, :] = seen[..., seen.shape[-2] - (self._end - self._begin) :, :]
        return seen


class FullLayer(DynamicLayer):
    """A block that sees all tokens."""

    def __init__(self, context: int) -> None:
        super().__init__()
        self._context = context
        self._rows: tuple[Rows, Rows] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._rows = Rows(key_states, self._context, None), Rows(value_states, self._context, None)
        assert self._rows is not None
        self.keys, self.values = (
            rows.append(new) for rows, new in zip(self._rows, (key_states, value_states), strict=True)
        )
        return self.keys, self.values


class WindowLayer(DynamicSlidingWindowLayer):
    """A block that sees the last tokens only, which are kept but for the newest one's place."""

    def __init__(self, sliding_window: int, chunk: int, context: int) -> None:
        super().__init__(sliding_window=sliding_window)
        self._capacity = min(context, sliding_window - 1 + chunk)
        self._rows: tuple[Rows, Rows] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            kept = self.sliding_window - 1
            self._rows = Rows(key_states, self._capacity, kept), Rows(value_states, self._capacity, kept)
        assert self._rows is not None
        self.cumulative_length += key_states.shape[-2]
        seen = [rows.append(new) for rows, new in zip(self._rows, (key_states, value_states), strict=True)]
        self.keys, self.values = (rows.kept for rows in self._rows)
        return seen[0], seen[1]


def reserved_cache(config: PreTrainedConfig, context: int, chunk: int) -> DynamicCache | None:
    """An empty cache for `context` tokens that come in chunks of at most `chunk`.

    None where a block keeps something else than the keys and values of all or of the last tokens.
    """
    cache = DynamicCache(config=config)
    layers = [_reserved(layer, context, chunk) for layer in cache.layers]
    if not layers or None in layers:
        return None
    cache.layers = layers
    return cache


def _reserved(layer: Any, context: int, chunk: int) -> FullLayer | WindowLayer | None:
    if type(layer) is DynamicLayer:
        return FullLayer(context)
    if type(layer) is DynamicSlidingWindowLayer:
        return WindowLayer(layer.sliding_window, chunk, context)
    return None
