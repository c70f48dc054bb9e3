"""A choice: one complete way to store a layer, with its canonical text.

    int4:g128                              asymmetric 4-bit, groups of 128 columns, fp16 scales, integer zeros
    int8s:g64                              symmetric
    int4:g128:out                          groups of 128 rows of a column
    int3                                   one scale a row
    int8:g128*10%|int4:g128                a tenth of the rows in 8 bits, the rest in 4
    int3:g128:range=clip                   ranges of groups are searched instead of minimum and maximum
    int2:g64+outliers:0.5%                 plus a sparse fp16 residual for 0.5 % of the weights
    int4:g128:zero=real:scale=bilevel(6,16x1)
    bf16                                   kept as it is

Full grammar: `docs/format.md`; the parser is `storage/grammar.py`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from bitbudget.grids import FP16, Float, Grid, packed_words
from bitbudget.storage.counts import Count
from bitbudget.storage.tensors import TensorSpec, index_dtype

if TYPE_CHECKING:
    from bitbudget.storage.layout import Layout

Shape = tuple[int, int]
INTEGER_BITS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True)
class Dense:
    """Codes of a grid for all rows, or for `count` of them (None: the rows that no part before it took)."""

    grid: Grid
    count: Count | None = None

    def __str__(self) -> str:
        grid = self.grid
        symmetric = "s" if grid.zero == "none" else ""
        text = f"int{grid.bits}{symmetric}"
        text += f":g{grid.group}" if grid.group else ""
        text += ":out" if grid.axis == "out" else ""
        text += f":zero={grid.zero}" if grid.zero in ("real", "half") else ""
        text += f":zeros={grid.zeros}" if grid.zero_codec else ""
        text += f":scale={grid.scale}" if grid.scale != FP16 else ""
        text += f":range={grid.range}" if grid.range != "minmax" else ""
        return text + (f"*{self.count}" if self.count else "")

    def specs(self, shape: Shape) -> Iterator[TensorSpec]:
        """Codes and group parameters of this part's own rows [rows, in]."""
        yield TensorSpec("codes", torch.int32, (shape[0], packed_words(shape[1], self.grid.bits)))
        table = self.grid.table_shape(shape)
        codecs = {"scale": self.grid.scale} | ({"zero": self.grid.zeros} if self.grid.zeros else {})
        for name, codec in codecs.items():
            for suffix, (dtype, stored_shape) in codec.layout(table).items():
                yield TensorSpec(name + suffix, dtype, stored_shape)


@dataclass(frozen=True)
class Outliers:
    """A sparse residual in CSR on top of what the dense parts decode to."""

    count: Count
    values: Float = FP16

    def __str__(self) -> str:
        return f"outliers:{self.count}" + (f":{self.values}" if self.values != FP16 else "")

    def specs(self, shape: Shape) -> Iterator[TensorSpec]:
        stored = self.count.of(shape[0] * shape[1])
        yield TensorSpec("values", self.values.dtype, (stored,))
        yield TensorSpec("columns", index_dtype(shape[1]), (stored,))
        yield TensorSpec("row_pointers", torch.int32, (shape[0] + 1,))


@dataclass(frozen=True)
class Activation:
    """Activations rounded to `bits` symmetric integers per token and `group` neighbouring features (None: all)."""

    bits: int
    group: int | None = None

    def __str__(self) -> str:
        return f"int{self.bits}" + (f":g{self.group}" if self.group else "")


@dataclass(frozen=True)
class Choice:
    """An ordered sum of parts between an optional input and output map, or a plain float format (`kept`).

    input_map "scale": x is multiplied by a vector [in] first. output_map "permute": row i of the parts is output
    rows[i]; "scale": outputs are multiplied by a vector [out]. Methods that search such maps write them; rounding to
    nearest does not.
    """

    dense: tuple[Dense, ...] = ()
    outliers: Outliers | None = None
    kept: Float | None = None
    input_map: Literal["scale"] | None = None
    activation: Activation | None = None
    output_map: Literal["permute", "scale"] | None = None

    def __str__(self) -> str:
        text = str(self.kept) if self.kept else "|".join(str(part) for part in self.dense)
        text += f"+{self.outliers}" if self.outliers else ""
        text += f"/in={self.input_map}" if self.input_map else ""
        text += f"/act={self.activation}" if self.activation else ""
        return text + (f"/out={self.output_map}" if self.output_map else "")

    @classmethod
    def parse(cls, text: str) -> "Choice":
        """Read a choice's text; every spelling that is accepted has exactly one canonical form, `str(choice)`.

        Raises:
            InputError: with a pointer at the character that does not fit, and what was expected there.
        """
        from bitbudget.storage.grammar import parse_choice

        return parse_choice(text)

    def row_counts(self, rows: int) -> tuple[int, ...]:
        """Rows of each dense part."""
        taken: list[int] = []
        for part in self.dense:
            free = rows - sum(taken)
            taken.append(free if part.count is None else min(free, part.count.of(rows)))
        return tuple(taken)

    def dense_names(self) -> tuple[str, ...]:
        """Names of the dense parts in the file: `dense`, or `dense0`, `dense1` … in a mix."""
        return ("dense",) if len(self.dense) == 1 else tuple(f"dense{i}" for i in range(len(self.dense)))

    def nominal_bits(self, shape: Shape) -> float:
        """Code bits a weight: what papers count, without scales, zeros, indices and outliers."""
        if self.kept:
            return 8.0 * self.kept.dtype.itemsize
        counts = self.row_counts(shape[0])
        return sum(part.grid.bits * rows for part, rows in zip(self.dense, counts, strict=True)) / shape[0]

    def misfit(self, shape: Shape) -> str | None:
        """Why this choice cannot store a weight [out, in], in a few words; None if it can."""
        for part, rows in zip(self.dense, self.row_counts(shape[0]), strict=True):
            along = "rows" if part.grid.axis == "out" else "columns"
            length = rows if part.grid.axis == "out" else shape[1]
            if rows == 0:
                return f"{part} gets none of {shape[0]} rows"
            if not part.grid.divides((rows, shape[1])):
                return f"{length} {along} are not divisible by the group size {part.grid.group}"
        if self.outliers and self.outliers.count.of(math.prod(shape)) >= 2**31:
            return "more than 2**31 - 1 outliers, which 32-bit row pointers cannot count"
        group = self.activation and self.activation.group
        if group and shape[1] % group:
            return f"{shape[1]} columns are not divisible by the activation group size {group}"
        return None

    def nbytes(self, shape: Shape, layout: "Layout | None" = None) -> int:
        """Exact bytes of the tensors of a weight [out, in] in a layout (default: the native one)."""
        from bitbudget.storage.layout import NATIVE

        return sum(spec.nbytes for spec in (layout or NATIVE).specs(self, shape))
