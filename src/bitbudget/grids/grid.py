"""Uniform integer grids: value = scale · (code − zero), with scale and zero shared by a group.

An asymmetric grid spans the group's minimum and maximum with 0 inside. A symmetric one is compressed-tensors': scale =
max|w| / ((2^b − 1)/2), so both ends fall half a step outside the outer codes.

Parameters live in tables: [out, groups] where groups run along `in`, [groups, in] where they run along `out`.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float as FloatArray
from jaxtyping import Int64, UInt8
from torch import Tensor

from bitbudget.grids.codecs import FP16, Byte, Codec, Float, PackedInt

Axis = Literal["in", "out"]
Zero = Literal["none", "int", "real", "half"]
Range = Literal["minmax", "clip"]
Matrix = FloatArray[Tensor, "rows in"]


class GroupParameters(NamedTuple):
    """Tables of scales and zeros; no zeros where the grid fixes them."""

    scale: Tensor
    zero: Tensor | None

    def at(self, table_rows: Tensor) -> "GroupParameters":
        """Only some rows of the tables, in the order asked."""
        return GroupParameters(self.scale[table_rows], None if self.zero is None else self.zero[table_rows])


@dataclass(frozen=True)
class Grid:
    """`levels` equidistant values a group; `group` neighbours along `axis` share parameters (None: all of them).

    zero: "none" fixes it at levels/2, "half" at (levels − 1)/2 (values symmetric about 0, which is not one of them),
    "int" stores a code of the grid, "real" any number (fp16 unless `zero_codec` says otherwise).
    range: the rule that finds a group's range, "minmax" or "clip" (searched, `grids/clip.py`; groups of columns only). It
    changes the parameters found, not how codes decode.
    """

    levels: int
    zero: Zero = "int"
    group: int | None = None
    axis: Axis = "in"
    scale: Codec = FP16
    zero_codec: Codec | None = None
    range: Range = "minmax"

    @property
    def bits(self) -> int:
        """Bits of one stored code."""
        return math.ceil(math.log2(self.levels))

    @property
    def zeros(self) -> Codec | None:
        """Codec of the zeros; None where the grid fixes them."""
        if self.zero not in ("int", "real"):
            return None
        return self.zero_codec or (PackedInt(self.bits) if self.zero == "int" else FP16)

    @property
    def fixed_zero(self) -> float:
        """The zero of every group where none is stored."""
        return {"none": self.levels / 2, "half": (self.levels - 1) / 2}.get(self.zero, 0.0)

    @property
    def holds_zero(self) -> bool:
        """Whether 0 is stored as 0 by every group: its zero is one of the codes."""
        return isinstance(self.zeros, PackedInt | Byte) or (self.zero == "none" and self.levels % 2 == 0)

    def group_length(self, shape: tuple[int, int]) -> int:
        return self.group or shape[self.grouped_dimension]

    @property
    def grouped_dimension(self) -> int:
        return 0 if self.axis == "out" else 1

    def divides(self, shape: tuple[int, int]) -> bool:
        """Whether whole groups cover a weight [out, in]."""
        length = shape[self.grouped_dimension]
        return length > 0 and length % self.group_length(shape) == 0

    def table_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Shape of the parameter tables of a weight [out, in]."""
        length = self.group_length(shape)
        return (shape[0] // length, shape[1]) if self.axis == "out" else (shape[0], shape[1] // length)

    def table_rows(self, rows: Int64[Tensor, " n"], shape: tuple[int, int]) -> Int64[Tensor, " n"]:
        """The table row that each weight row reads."""
        return rows // self.group_length(shape) if self.axis == "out" else rows

    def fit(self, weights: Matrix, keep: Tensor | None = None) -> GroupParameters:
        """Min-max parameters, fp32, of a tile of rows that contains whole groups; only weights where `keep` count.

        A group of zeros gets the scale 0, for which `stored` finds a number.
        """
        return self.spanning(*self.limits(weights, keep))

    def spanning(self, low: Tensor, high: Tensor) -> GroupParameters:
        """Parameters, fp32, of groups with these ends, low <= 0 <= high."""
        if self.zeros is None:
            return GroupParameters(torch.maximum(-low, high) / ((self.levels - 1) / 2), None)
        scale = (high - low) / (self.levels - 1)
        return GroupParameters(scale, -low / torch.where(scale > 0, scale, 1.0))

    def limits(self, weights: Matrix, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Least and largest weight of every group, 0 always within; only weights where `keep` count."""
        weights = weights if keep is None else weights.masked_fill(~keep, 0.0)
        length = self.group or weights.shape[self.grouped_dimension]
        groups = weights.unflatten(self.grouped_dimension, (-1, length))
        within = self.grouped_dimension + 1
        return groups.amin(within).clamp(max=0), groups.amax(within).clamp(min=0)

    def stored(self, fitted: GroupParameters) -> GroupParameters:
        """The parameters as their codecs give them back. Codes have to be chosen against these."""
        scale = self.scale.round(self._without_zeros(fitted.scale))
        if self.zeros is None or fitted.zero is None:
            return GroupParameters(scale, None)
        low = -fitted.zero * fitted.scale  # the zero follows the scale that is stored
        # Within the codes, so that 0 stays in range even where the stored scale is far from the fitted one.
        return GroupParameters(scale, self.zeros.round((-low / scale).clamp(0, self.levels - 1)))

    def stored_all(self, fitted: GroupParameters) -> GroupParameters:
        """`stored` of every table of a stack [tables, rows, groups]; of all at once where codecs round every value by itself."""
        codecs = (self.scale,) if self.zeros is None else (self.scale, self.zeros)
        count = len(fitted.scale)
        if all(codec.elementwise for codec in codecs):
            zero = None if fitted.zero is None else fitted.zero.flatten(0, 1)
            tables = [self.stored(GroupParameters(fitted.scale.flatten(0, 1), zero))]
        else:
            tables = [self.stored(fitted.at(torch.tensor(table))) for table in range(count)]
        zeros = [table.zero for table in tables if table.zero is not None]
        scale = torch.cat([table.scale for table in tables]).unflatten(0, (count, -1))
        return GroupParameters(scale, torch.cat(zeros).unflatten(0, (count, -1)) if zeros else None)

    def _without_zeros(self, scale: Tensor) -> Tensor:
        """Scales with a number wherever 0 would lose the group, small so that no other group is rounded to it."""
        if isinstance(self.scale, Float):
            return torch.where(self.scale.round(scale) > 0, scale, self.scale.smallest)
        positive = scale[scale > 0]
        return torch.where(scale > 0, scale, positive.amin() if positive.numel() else 1.0)

    def encode(self, weights: Matrix, parameters: GroupParameters) -> UInt8[Tensor, "rows in"]:
        """Nearest codes, ties to even; `parameters` hold the table row of every row (see `table_rows`)."""
        return self._encoded(weights, parameters).to(torch.uint8)

    def decode(self, codes: UInt8[Tensor, "rows in"], parameters: GroupParameters) -> Matrix:
        """scale · (code − zero) in fp32; `parameters` hold the table row of every row."""
        return self._decoded(codes.float(), parameters)

    def nearest(self, weights: Matrix, parameters: GroupParameters, out: Matrix | None = None) -> Matrix:
        """What the nearest codes decode to, fp32. out: where to write it."""
        return self._decoded(self._encoded(weights, parameters, out), parameters)

    def _encoded(self, weights: Matrix, parameters: GroupParameters, out: Matrix | None = None) -> Matrix:
        scale, zero = self._spread(parameters)
        grouped = (parameters.scale.shape[1], -1)
        codes = torch.div(weights.unflatten(1, grouped), scale, out=None if out is None else out.unflatten(1, grouped))
        return codes.add_(zero).round_().clamp_(0, self.levels - 1).flatten(1)

    def _decoded(self, codes: Matrix, parameters: GroupParameters) -> Matrix:
        """Changes `codes` in place."""
        scale, zero = self._spread(parameters)
        return codes.unflatten(1, (parameters.scale.shape[1], -1)).sub_(zero).mul_(scale).flatten(1)

    def _spread(self, parameters: GroupParameters) -> tuple[Tensor, Tensor | float]:
        """Scale and zero against weights [rows, groups, columns of a group]; a group is one column along `out`."""
        zero = self.fixed_zero if parameters.zero is None else parameters.zero.unsqueeze(-1)
        return parameters.scale.unsqueeze(-1), zero
