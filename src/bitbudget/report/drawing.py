"""What is drawn of a model's layers, on the terminal and as a picture: a column for each linear, a row for each block.

A cell's mark says how the layer is stored: bits of a code, then what differs from most layers.

    4       4-bit codes             4.6     rows of several widths: their mean
    16      a float, as it was      3-4     several layers in one cell (experts): least and most
    4g64    another group size      3a      other settings, named below
    3+      with outliers           ?       a choice of a kind unknown here
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bitbudget.report.choices import ONE_GROUP, Brief, read

Entry = Mapping[str, Any]
Layers = Mapping[str, Entry]  # as bitbudget.json's output.layers: choice and block; where known, shape and bytes
LETTERS = "abcdefhijklmnopqrstuvwxyz"  # without g, which stands before a group size
UNKNOWN = "?"


@dataclass(frozen=True)
class Cell:
    """One layer of a block, or several of the same kind. code: mean bits of a code; stored: stored bits a weight."""

    mark: str
    code: float | None
    stored: float | None


@dataclass(frozen=True)
class Row:
    """A block, or a layer outside the blocks, which has a single cell. label: the block's number or the layer's name."""

    label: str
    cells: tuple[Cell | None, ...]
    stored: float | None


@dataclass(frozen=True)
class Column:
    """The linear of every block that is called `path.name`."""

    path: str
    name: str


@dataclass(frozen=True)
class Drawing:
    """blocks and outside: rows; legend: what the marks that occur mean; in_blocks, total: stored bits a weight."""

    columns: tuple[Column, ...]
    blocks: tuple[Row, ...]
    outside: tuple[Row, ...]
    legend: tuple[str, ...]
    in_blocks: float | None
    total: float | None


def role(name: str, entry: Entry) -> str:
    """The layer's name with a star for the number of its block."""
    if entry["block"] is None:
        return name
    return re.sub(rf"(^|\.){entry['block']}(?=\.|$)", r"\1*", name, count=1)


def stored_bits(entries: Iterable[Entry]) -> float | None:
    """Stored bits a weight, over some layers; None where shapes or bytes are not known."""
    entries = list(entries)
    if not entries or not all("shape" in entry and "bytes" in entry for entry in entries):
        return None
    weights = sum(math.prod(entry["shape"]) for entry in entries)
    return 8 * sum(entry["bytes"] for entry in entries) / weights


def draw(layers: Layers) -> Drawing:
    """Everything that is drawn of the layers, in their order."""
    marks = _Marks(layers)
    columns: dict[str, None] = {}
    blocks: dict[int, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    outside: list[Row] = []
    for name, entry in layers.items():
        if entry["block"] is None:
            outside.append(Row(name, (marks.cell([entry]),), stored_bits([entry])))
        else:
            column = _column(name, entry)
            columns[column] = None
            blocks[entry["block"]][column].append(entry)
    rows = []
    for number, own in sorted(blocks.items()):
        cells = tuple(marks.cell(own[column]) if column in own else None for column in columns)
        rows.append(Row(str(number), cells, stored_bits(entry for entries in own.values() for entry in entries)))
    return Drawing(
        columns=_by_path(list(columns)),
        blocks=tuple(rows),
        outside=tuple(outside),
        legend=tuple(marks.legend()),
        in_blocks=stored_bits(entry for entry in layers.values() if entry["block"] is not None),
        total=stored_bits(layers.values()),
    )


def merged(rows: Sequence[Row]) -> list[Row]:
    """Rows of blocks; neighbours that look the same become one, such as `1-5`."""
    found: list[Row] = []
    for row in rows:
        if found and _look(found[-1]) == _look(row):
            found[-1] = Row(f"{found[-1].label.partition('-')[0]}-{row.label}", row.cells, row.stored)
        else:
            found.append(row)
    return found


def bits_text(bits: float | None) -> str:
    """Stored bits as they are shown."""
    return "" if bits is None else f"{bits:.3f}"


def _look(row: Row) -> tuple[str, ...]:
    return (*(cell.mark if cell else "" for cell in row.cells), bits_text(row.stored))


def _column(name: str, entry: Entry) -> str:
    """What the layer is called in every block; experts, which are numbered too, share a column."""
    before, star, after = role(name, entry).partition("*")
    inside = after.removeprefix(".") if star else before
    return re.sub(r"(^|\.)[0-9]+(?=\.|$)", r"\1*", inside)


def _by_path(columns: Sequence[str]) -> tuple[Column, ...]:
    return tuple(Column(*column.rpartition(".")[::2]) for column in columns)


class _Marks:
    """Turns choices into marks; knows what most layers have in common and remembers what has to be explained."""

    def __init__(self, layers: Layers) -> None:
        self.briefs = {entry["choice"]: read(entry["choice"]) for entry in layers.values()}
        counts = Counter(entry["choice"] for entry in layers.values())
        coded = [(brief, counts[text]) for text, brief in self.briefs.items() if brief.widths and not brief.kept]
        self.group = _most_common((brief.group, count) for brief, count in coded)
        self.style = _most_common((brief.style, count) for brief, count in coded)
        named = [brief for brief in self.briefs.values() if brief.widths and (brief.style or not brief.kept)]
        others = dict.fromkeys(brief.style for brief in named if brief.style != self.style)
        self.letters = {style: _letter(place) for place, style in enumerate(others)}
        self.spans = False

    def cell(self, entries: Sequence[Entry]) -> Cell:
        """The cell of one layer, or of several of the same kind in a block."""
        briefs = [(self.briefs[entry["choice"]], entry) for entry in entries]
        codes = [brief.bits(entry["shape"][0] if "shape" in entry else None) for brief, entry in briefs]
        known = [code for code in codes if code is not None]
        marks = list(dict.fromkeys(self._mark(brief, code) for (brief, _), code in zip(briefs, codes, strict=True)))
        self.spans |= len(marks) > 1
        mark = marks[0] if len(marks) == 1 else _span(marks, known)
        return Cell(mark, sum(known) / len(known) if known else None, stored_bits(entries))

    def _mark(self, brief: Brief, code: float | None) -> str:
        if not brief.widths:
            return UNKNOWN
        if len(brief.widths) == 1:
            text = f"{code:.0f}"
        else:
            text = "|".join(str(width.bits) for width in brief.widths) if code is None else f"{code:.1f}"
        group = brief.group if brief.group not in ("", self.group) else ""
        letter = self.letters.get(brief.style, "") if brief.style or not brief.kept else ""
        return text + group + letter + ("+" if brief.outliers else "")

    def legend(self) -> list[str]:
        """A phrase for every kind of mark that occurs."""
        briefs = self.briefs.values()
        whole = [brief for brief in briefs if brief.widths and not brief.kept]
        lines = []
        if whole:
            usual = ", ".join(word for word in (_group_words(self.group), self.style) if word)
            lines.append(f"number: bits of a code, {usual}")
        lines += [f"{bits}: kept as a float" for bits in sorted({b.widths[0].bits for b in briefs if b.kept})]
        if any(len(brief.widths) > 1 for brief in briefs):
            lines.append("with a point: rows of several widths, their mean")
        if self.spans:
            lines.append("2-3 and such: several layers in one place, the least and the most")
        groups = dict.fromkeys(brief.group for brief in whole if brief.group != self.group)
        lines += [f"{group}: {_group_words(group)}" for group in groups]
        lines += [
            f"{letter}: {f'with {style}' if style else f'without {self.style}'}"
            for style, letter in self.letters.items()
        ]
        shares = list(dict.fromkeys(brief.outliers for brief in briefs if brief.outliers))
        if shares:
            lines.append(f"+: with outliers ({', '.join(shares[:3])}{' …' if len(shares) > 3 else ''})")
        if any(not brief.widths for brief in briefs):
            lines.append(f"{UNKNOWN}: a choice of another kind")
        return lines


def _letter(place: int) -> str:
    return LETTERS[place % len(LETTERS)] * (place // len(LETTERS) + 1)


def _most_common(counted: Iterable[tuple[str, int]]) -> str:
    total: Counter[str] = Counter()
    for word, count in counted:
        total[word] += count
    return total.most_common(1)[0][0] if total else ""


def _span(marks: Sequence[str], codes: Sequence[float]) -> str:
    """One mark for several: least and most bits."""
    plus = "+" if any(mark.endswith("+") for mark in marks) else ""
    if not codes:
        return UNKNOWN
    least, most = (f"{code:.1f}".removesuffix(".0") for code in (min(codes), max(codes)))
    return (least if least == most else f"{least}-{most}") + plus


def _group_words(group: str) -> str:
    if "|" in group:
        return f"groups of {' and '.join(word.removeprefix('g') for word in group.split('|'))}"
    return "one group a row" if group == ONE_GROUP else f"groups of {group.removeprefix('g')}"
