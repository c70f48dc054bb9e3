"""Number grids: which values the codes of a weight decode to, and how the parameters of a group are stored."""

from bitbudget.grids.bitstream import pack, packed_words, unpack, unpack_at
from bitbudget.grids.codecs import BF16, FP16, FP32, U8, Bilevel, Codec, Float, PackedInt
from bitbudget.grids.grid import Grid, GroupParameters

__all__ = [
    "BF16",
    "FP16",
    "FP32",
    "U8",
    "Bilevel",
    "Codec",
    "Float",
    "Grid",
    "GroupParameters",
    "PackedInt",
    "pack",
    "packed_words",
    "unpack",
    "unpack_at",
]
