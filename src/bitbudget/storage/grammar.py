"""The parser of choices: a hand-written descent, so that an error can point at the character.

choice     = float | dense { "|" dense } [ "+" outliers ] { "/" map }                 maps in this order, once each
float      = "fp16" | "bf16" | "fp32"
dense      = "int" BITS [ "s" ] { ":" setting } [ "*" count ]      every dense but the last of a mix has a count
setting    = "g" NUMBER | "out" | "zero=real" | "zero=half" | "zeros=" codec | "scale=" codec | "range=clip"
outliers   = "outliers:" count [ ":" float ]
map        = "in=scale" | "act=int" BITS [ ":g" NUMBER ] | "out=permute" | "out=scale"
codec      = float | "byte" | "u" BITS | "bilevel(" BITS "," NUMBER "x" NUMBER [ ",offset" ] ")"
count      = NUMBER | NUMBER [ "." DIGITS ] "%"
"""

import re
from dataclasses import replace

from bitbudget.errors import InputError
from bitbudget.grids import BF16, FP16, FP32, Float, Grid, PackedInt
from bitbudget.grids.codecs import parse_codec
from bitbudget.storage.choice import INTEGER_BITS, Activation, Choice, Dense, Outliers
from bitbudget.storage.counts import Count

FLOATS: dict[str, Float] = {"fp16": FP16, "bf16": BF16, "fp32": FP32}


def parse_choice(text: str) -> Choice:
    """See `Choice.parse`."""
    return _Reader(text).choice()


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def error(self, expected: str, at: int | None = None) -> InputError:
        place = self.at if at is None else at
        found = repr(self.text[place]) if place < len(self.text) else "the end"
        return InputError(
            f"The choice {self.text!r} is not understood at character {place + 1}: expected {expected}, "
            f"found {found}.\n"
            f"    {self.text}\n    {' ' * place}^\n"
            "Examples: int4:g128, int8s:g64, int3:g128+outliers:0.5%, int8:g128*10%|int4:g128, bf16."
        )

    def take(self, pattern: str) -> str | None:
        found = re.compile(pattern).match(self.text, self.at)
        if not found:
            return None
        self.at = found.end()
        return found[0]

    def choice(self) -> Choice:
        kept = self.take("fp16|bf16|fp32")
        if kept:
            result = Choice(kept=FLOATS[kept])
        else:
            result = Choice(dense=self.mix(), outliers=self.outliers() if self.take(r"\+") else None)
        while not kept and self.take("/"):
            result = self.map(result)
        if self.at < len(self.text):
            raise self.error("the end" if kept else "the end, ':', '*', '|', '+' or '/'")
        return result

    def mix(self) -> tuple[Dense, ...]:
        parts = [self.dense()]
        while self.take(r"\|"):
            if parts[-1].count is None:
                raise self.error(
                    "'*' and a count of rows: in a mix every width but the last says how many rows it has", self.at - 1
                )
            parts.append(self.dense())
        if parts[-1].count is not None:
            raise self.error("'|' and the width of the remaining rows")
        return tuple(parts)

    def dense(self) -> Dense:
        if not self.take("int"):
            raise self.error("'int' and a width, or fp16, bf16, fp32")
        start = self.at
        bits = self.take(r"[0-9]{1,9}")
        if bits is None or bits not in map(str, INTEGER_BITS):
            raise self.error(f"a width of {', '.join(map(str, INTEGER_BITS))} bits", start)
        grid = Grid(levels=2 ** int(bits), zero="none" if self.take("s") else "int")
        seen: set[str] = set()
        while self.take(":"):
            start = self.at
            name, grid = self.setting(grid)
            if name in seen:
                raise self.error("a setting that was not given before", start)
            seen.add(name)
        if grid.zero_codec == replace(grid, zero_codec=None).zeros:
            grid = replace(grid, zero_codec=None)  # the default needs no words
        return Dense(grid, self.count() if self.take(r"\*") else None)

    def setting(self, grid: Grid) -> tuple[str, Grid]:
        start = self.at
        if group := self.take(r"g[1-9][0-9]{0,8}"):
            return "group", replace(grid, group=int(group[1:]))
        if grid.range == "minmax" and self.take(r"out(?![a-z])"):
            return "axis", replace(grid, axis="out")
        if self.take("zero="):
            kind = self.take("real|half")
            if kind is None or grid.zero == "none" or grid.zero_codec:
                raise self.error("'real' or 'half', on an asymmetric grid and before zeros=", start)
            return "zero", replace(grid, zero="real" if kind == "real" else "half")
        if self.take("zeros="):
            codec = parse_codec(self.word())
            if codec is None or grid.zero not in ("int", "real") or (isinstance(codec, Float) and grid.zero == "int"):
                raise self.error("a codec that can hold this grid's zeros", start)
            if isinstance(codec, PackedInt) and codec.bits < grid.bits:
                raise self.error(f"at least u{grid.bits}: zeros go up to {grid.levels - 1}", start)
            return "zeros", replace(grid, zero_codec=codec)
        if self.take("scale="):
            codec = parse_codec(self.word())
            if codec is None or isinstance(codec, PackedInt) or str(codec) == "byte":
                raise self.error("fp16, bf16, fp32 or bilevel(bits,rowsxgroups)", start + len("scale="))
            return "scale", replace(grid, scale=codec)
        if self.take("range="):
            if not self.take("clip(?![a-z])") or grid.axis == "out":
                raise self.error("'clip', on groups of columns", start)
            return "range", replace(grid, range="clip")
        raise self.error("g and a group size, out, zero=, zeros=, scale= or range=")

    def word(self) -> str:
        return self.take(r"[a-z]+[0-9]*(\([^)]*\))?") or ""

    def count(self) -> Count:
        start = self.at
        count = Count.parse(self.take(r"[0-9.]+%?") or "")
        if count is None:
            raise self.error("a number above 0, or a share up to 100 % such as 0.5%", start)
        return count

    def outliers(self) -> Outliers:
        if not self.take("outliers:"):
            raise self.error("'outliers:' and a count")
        count = self.count()
        if not self.take(":"):
            return Outliers(count)
        values = self.take("fp16|bf16|fp32")
        if values is None:
            raise self.error("fp16, bf16 or fp32")
        return Outliers(count, FLOATS[values])

    def map(self, choice: Choice) -> Choice:
        start = self.at
        if not (choice.input_map or choice.activation or choice.output_map) and self.take("in=scale"):
            return replace(choice, input_map="scale")
        if not (choice.activation or choice.output_map) and self.take("act=int"):
            bits = self.take(r"[48](?![0-9])")
            if bits is None:
                raise self.error("4 or 8")
            group = self.take(r":g[1-9][0-9]{0,8}")
            return replace(choice, activation=Activation(int(bits), int(group[2:]) if group else None))
        if kind := (not choice.output_map and self.take("out=(permute|scale)")):
            return replace(choice, output_map="permute" if kind.endswith("permute") else "scale")
        raise self.error("in=scale, act=int8 or act=int4, out=permute or out=scale, in this order and once each", start)
