"""What a drawing needs to know of a choice, read from its canonical text: the choice itself would load torch."""

import re
from dataclasses import dataclass

FLOAT_BITS = {"fp16": 16, "bf16": 16, "fp32": 32}
DENSE = re.compile(r"int(?P<bits>[0-9]+)(?P<symmetric>s?)(?P<settings>(?::[^*]+)?)(?:\*(?P<count>[0-9.]+%?))?")
GROUP = re.compile(r"g[0-9]+")
ONE_GROUP = "gr"  # in place of a group size: one group is a whole row (or column)


@dataclass(frozen=True)
class Width:
    """One of a choice's dense parts: bits of a code, and the text of its count of rows (empty: the rest)."""

    bits: int
    count: str


@dataclass(frozen=True)
class Brief:
    """A choice in brief. widths: its dense parts, or the float it is kept in; none if the text is of a kind unknown here.

    group: `g128`, `gr` for one group a row, `g128|g64` in a mix of both, empty for floats; style: every other setting of
    grid, maps and activations; outliers: their count and dtype; kept: stays a float.
    """

    widths: tuple[Width, ...]
    group: str
    style: str
    outliers: str
    kept: bool

    def bits(self, rows: int | None) -> float | None:
        """Bits of a code: the mean over the rows of a mix; None if that cannot be known."""
        if len(self.widths) == 1:
            return float(self.widths[0].bits)
        if not self.widths or (rows is None and not all(width.count.endswith("%") for width in self.widths[:-1])):
            return None
        left, total = 1.0, 0.0
        for width in self.widths:
            share = min(_share(width.count, rows or 1), left) if width.count else left
            total += share * width.bits
            left -= share
        return total


def read(text: str) -> Brief:
    """A canonical choice in brief."""
    body, *maps = text.split("/")
    first, *more = body.split("+")
    if first in FLOAT_BITS:
        return Brief((Width(FLOAT_BITS[first], ""),), "", "/".join(maps), "", kept=True)
    parts = [DENSE.fullmatch(part) for part in first.split("|")]
    outliers = [part.removeprefix("outliers:") for part in more if part.startswith("outliers:")]
    if not all(parts) or len(outliers) != len(more) or len(more) > 1:
        return Brief((), "", text, "", kept=False)
    known = [part for part in parts if part]
    groups, styles = zip(*(_settings(part) for part in known), strict=True)
    return Brief(
        widths=tuple(Width(int(part["bits"]), part["count"] or "") for part in known),
        group="|".join(dict.fromkeys(groups)),
        style="".join(f"/{word}" for word in ("|".join(dict.fromkeys(styles)), *maps)).removeprefix("/"),
        outliers="".join(outliers),
        kept=False,
    )


def _settings(part: re.Match[str]) -> tuple[str, str]:
    """The group and all other settings of a dense part."""
    settings = [word for word in part["settings"].split(":") if word]
    groups = [word for word in settings if GROUP.fullmatch(word)]
    others = [word for word in settings if word not in groups]
    return "".join(groups) or ONE_GROUP, ":".join((["symmetric"] if part["symmetric"] else []) + others)


def _share(count: str, rows: int) -> float:
    """The share of the rows that a count names."""
    return float(count[:-1]) / 100 if count.endswith("%") else float(count) / rows
