"""Codecs: how the parameters of groups (scales, zeros) are themselves stored.

A codec rounds a parameter to a value that it can store; grids round first and choose codes against the rounded value,
so that what is decoded later is exactly what the codes were chosen for.
"""

import math
import re
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float as FloatArray
from torch import Tensor

from bitbudget.grids.bitstream import pack, packed_words, unpack_at

Shape = tuple[int, ...]
Table = FloatArray[Tensor, "rows groups"]


@runtime_checkable
class Codec(Protocol):
    """Storage of a [rows, groups] table of group parameters. `str(codec)` is its word in the text of a choice."""

    @property
    def elementwise(self) -> bool:
        """Whether every value is rounded by itself."""
        ...

    def round(self, values: Table) -> Table:
        """The nearest table that can be stored, fp32."""
        ...

    def layout(self, shape: Shape) -> dict[str, tuple[torch.dtype, Shape]]:
        """Name suffix -> (dtype, shape) of the stored tensors; the suffix "" is the parameter's own name."""
        ...

    def tensors(self, values: Table) -> dict[str, Tensor]:
        """Stored tensors of an already rounded table, as `layout` names them."""
        ...

    def decode(self, tensors: dict[str, Tensor], shape: Shape, rows: Tensor) -> Table:
        """The given rows of the table, fp32, from its stored tensors."""
        ...


@dataclass(frozen=True)
class Float:
    """A plain floating-point tensor."""

    dtype: torch.dtype
    elementwise = True

    def __str__(self) -> str:
        return _FLOAT_NAMES[self.dtype]

    def round(self, values: Table) -> Table:
        return values.to(self.dtype).float()

    @property
    def smallest(self) -> float:
        """The smallest positive number a scale may be."""
        return 2.0**-24 if self.dtype == torch.float16 else torch.finfo(self.dtype).smallest_normal

    def holds(self, values: Tensor) -> bool:
        """Whether every value can be stored without overflow, and without losing more digits than bf16 would.

        Below 2**-16 the half-precision numbers are subnormal with fewer than the 8 significant bits of bf16.
        """
        if self.dtype != torch.float16:
            return True
        magnitudes = values.abs()
        small = magnitudes[magnitudes > 0]
        return small.numel() == 0 or bool(small.max() <= 65504.0 and small.min() >= 2.0**-16)

    def layout(self, shape: Shape) -> dict[str, tuple[torch.dtype, Shape]]:
        return {"": (self.dtype, shape)}

    def tensors(self, values: Table) -> dict[str, Tensor]:
        return {"": values.to(self.dtype)}

    def decode(self, tensors: dict[str, Tensor], shape: Shape, rows: Tensor) -> Table:
        return tensors[""][rows].float()


FP16, BF16, FP32 = Float(torch.float16), Float(torch.bfloat16), Float(torch.float32)
_FLOAT_NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}


@dataclass(frozen=True)
class PackedInt:
    """Integers 0 … 2**bits − 1 in one bit stream over the whole table, row by row, padded once to 32 bits."""

    bits: int
    elementwise = True

    def __str__(self) -> str:
        return f"u{self.bits}"

    def round(self, values: Table) -> Table:
        return values.round().clamp(0, 2**self.bits - 1)

    def layout(self, shape: Shape) -> dict[str, tuple[torch.dtype, Shape]]:
        return {"": (torch.int32, (packed_words(math.prod(shape), self.bits),))}

    def tensors(self, values: Table) -> dict[str, Tensor]:
        return {"": pack(values.to(torch.uint8).reshape(1, -1), self.bits)[0]}

    def decode(self, tensors: dict[str, Tensor], shape: Shape, rows: Tensor) -> Table:
        positions = rows[:, None] * shape[1] + torch.arange(shape[1], device=rows.device)
        return unpack_at(tensors[""], self.bits, positions).float()


@dataclass(frozen=True)
class Byte:
    """Integers 0 … 255, a byte each."""

    elementwise = True

    def __str__(self) -> str:
        return "byte"

    def round(self, values: Table) -> Table:
        return values.round().clamp(0, 255)

    def layout(self, shape: Shape) -> dict[str, tuple[torch.dtype, Shape]]:
        return {"": (torch.uint8, shape)}

    def tensors(self, values: Table) -> dict[str, Tensor]:
        return {"": values.to(torch.uint8)}

    def decode(self, tensors: dict[str, Tensor], shape: Shape, rows: Tensor) -> Table:
        return tensors[""][rows].float()


U8 = Byte()


@dataclass(frozen=True)
class Bilevel:
    """Parameters quantized once more, in tiles of the table: value = base + step · code.

    `tile` is (rows, groups) of the table that share an fp16 step, and with `offset` an fp16 base (SpQR, section 3.1);
    without it the base is zero (K-quants). A positive value never gets the code that decodes to zero: a zero scale
    would lose its group. A tile larger than the table is the whole table.
    """

    bits: int
    tile: tuple[int, int]
    offset: bool = False
    elementwise = False

    def __str__(self) -> str:
        return f"bilevel({self.bits},{self.tile[0]}x{self.tile[1]}{',offset' if self.offset else ''})"

    def _tile(self, shape: Shape) -> Shape:
        """The tile within a table: never larger than it, so that no memory is taken for what is not there."""
        return min(self.tile[0], shape[0]), min(self.tile[1], shape[1])

    def _tiles(self, shape: Shape) -> Shape:
        return (-(-shape[0] // self.tile[0]), -(-shape[1] // self.tile[1]))

    def _spread(self, per_tile: Tensor, shape: Shape) -> Tensor:
        rows, groups = self._tile(shape)
        return per_tile.repeat_interleave(rows, 0).repeat_interleave(groups, 1)[: shape[0], : shape[1]]

    def _levels(self, values: Table) -> tuple[Tensor, Tensor]:
        """fp16 step and base of every tile, as stored, [tile rows, tile groups]."""
        rows, groups = self._tile(tuple(values.shape))
        tile_rows, tile_groups = self._tiles(tuple(values.shape))
        padding = (0, tile_groups * groups - values.shape[1], 0, tile_rows * rows - values.shape[0])
        # Edge tiles are filled with their own last values, which changes neither their minimum nor their maximum.
        filled = torch.nn.functional.pad(values[None, None], padding, mode="replicate")[0, 0]
        tiles = filled.reshape(tile_rows, rows, tile_groups, groups)
        high = tiles.amax(dim=(1, 3))
        base = _half(tiles.amin(dim=(1, 3))) if self.offset else torch.zeros_like(high).half()
        spread = (high - base.float()).clamp(min=0)
        step = _half(spread / (2**self.bits - 1))
        smallest = torch.full_like(step, 2.0**-24)  # of fp16: a positive value must not vanish with its step
        return torch.where((spread > 0) & (step == 0), smallest, step), base

    def _codes(self, values: Table, step: Tensor, base: Tensor) -> Tensor:
        shape = tuple(values.shape)
        wide_step, wide_base = self._spread(step.float(), shape), self._spread(base.float(), shape)
        codes = ((values - wide_base) / torch.where(wide_step > 0, wide_step, 1.0)).round().clamp(0, 2**self.bits - 1)
        lost = (values > 0) & (wide_base + wide_step * codes <= 0)
        return torch.where(lost, 1.0, codes).to(torch.uint8)

    def round(self, values: Table) -> Table:
        # A rounded table can have another minimum or maximum and so other levels than it was rounded with; `tensors`
        # finds its levels again only once it has come to rest, nearly always at the second look.
        for _ in range(16):
            rounded = self._round_once(values)
            if torch.equal(rounded, values):
                break
            values = rounded
        return values

    def _round_once(self, values: Table) -> Table:
        step, base = self._levels(values)
        shape = tuple(values.shape)
        codes = self._codes(values, step, base).float()
        return self._spread(base.float(), shape) + self._spread(step.float(), shape) * codes

    def layout(self, shape: Shape) -> dict[str, tuple[torch.dtype, Shape]]:
        stored = {
            "_codes": (torch.int32, (packed_words(math.prod(shape), self.bits),)),
            "_step": (torch.float16, self._tiles(shape)),
        }
        return stored | ({"_base": (torch.float16, self._tiles(shape))} if self.offset else {})

    def tensors(self, values: Table) -> dict[str, Tensor]:
        step, base = self._levels(values)
        codes = self._codes(values, step, base)
        stored = {"_codes": pack(codes.reshape(1, -1), self.bits)[0], "_step": step}
        return stored | ({"_base": base} if self.offset else {})

    def decode(self, tensors: dict[str, Tensor], shape: Shape, rows: Tensor) -> Table:
        positions = rows[:, None] * shape[1] + torch.arange(shape[1], device=rows.device)
        codes = unpack_at(tensors["_codes"], self.bits, positions).float()
        tile_of_column = torch.arange(shape[1], device=rows.device) // self.tile[1]
        where = (rows // self.tile[0])[:, None], tile_of_column[None, :]
        values = tensors["_step"].float()[where] * codes
        return values + tensors["_base"].float()[where] if self.offset else values


def _half(values: Tensor) -> Tensor:
    """Nearest fp16 numbers, saturating: an infinite step would turn a whole tile into NaN."""
    return values.clamp(-65504.0, 65504.0).half()


def parse_codec(text: str) -> Codec | None:
    """The codec a word stands for, or None."""
    named: dict[str, Codec] = {"fp16": FP16, "bf16": BF16, "fp32": FP32, "byte": U8}
    if text in named:
        return named[text]
    if packed := re.fullmatch(r"u([1-8])", text):
        return PackedInt(int(packed[1]))
    if two := re.fullmatch(r"bilevel\(([1-8]),([1-9][0-9]{0,8})x([1-9][0-9]{0,8})(,offset)?\)", text):
        return Bilevel(int(two[1]), (int(two[2]), int(two[3])), bool(two[4]))
    return None
