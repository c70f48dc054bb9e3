"""The bits of every layer and block, drawn with letters: readable without colours, on 80 columns and in a file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from bitbudget.report.drawing import Cell, Column, Drawing, Layers, Row, bits_text, draw, merged
from bitbudget.report.terminal import printable, say

EIGHTHS = " ▏▎▍▌▋▊▉"
LONGEST_BAR, SHORTEST_BAR = 24, 6
BITS = 8  # columns of the number before a bar, with the gap
LONG, HEADINGS_EVERY = 40, 20  # rows of a table that needs more than one heading, and how often it gets one
SCALES = (2, 4, 8, 16, 32)  # bits at the full length of a bar
# Bits of a code up to which a colour stands, text on it, colour: viridis, which also rises in lightness, then grey.
SHADES = (
    (2.0, "#ffffff", "#440154"),
    (3.0, "#ffffff", "#414487"),
    (4.0, "#ffffff", "#2a788e"),
    (5.0, "#000000", "#22a884"),
    (6.0, "#000000", "#7ad151"),
    (8.0, "#000000", "#fde725"),
    (32.0, "#000000", "#e0e0e0"),
)


@dataclass(frozen=True)
class _Field:
    """A column as it is drawn: its heading and how wide it is, the space on both sides included."""

    path: str
    name: str
    width: int


@dataclass(frozen=True)
class _Page:
    """Fields that fit beside each other. label: columns of the block's number; bar: of a bar, 0 for none; full: its bits."""

    fields: tuple[_Field, ...]
    first: int  # the place of its first field among all
    label: int
    bits: bool
    bar: int
    full: int

    @property
    def width(self) -> int:
        """Columns before the bits."""
        return self.label + _width(self.fields)


def show_bits(console: Console, layers: Layers) -> None:
    """A row for every block, a cell for every layer, stored bits as numbers and bars, a legend.

    layers: name → entry with `choice` and `block` (None outside the blocks), and, for stored bits and bars, `shape` and
    `bytes`; as `output.layers` of bitbudget.json. Blocks that look the same share a row.
    """
    drawing = draw(layers)
    rows = merged(drawing.blocks)
    pages, short = _pages(drawing, rows, console.width)
    step = HEADINGS_EVERY if len(rows) > LONG else max(len(rows), 1)
    for page in pages:
        for start in range(0, len(rows), step):
            _show_rows(console, page, rows[start : start + step])
            if start + step < len(rows) or page is not pages[-1]:
                console.print()
    _show_outside(console, pages[-1], drawing)
    _show_legend(console, drawing, pages[-1], short)


def bar(share: float, width: int = LONGEST_BAR) -> str:
    """A bar of `share` of the width, exact to an eighth of a letter."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def _pages(drawing: Drawing, rows: Sequence[Row], width: int) -> tuple[list[_Page], bool]:
    """The columns on as few pages as the width allows, and whether `_proj` was left out for that."""
    label = max([len("block"), *(len(row.label) for row in rows)])
    has_bits = drawing.total is not None
    room = width - label - (BITS + 2 + SHORTEST_BAR if has_bits else 0)
    short = tuple(_shortened(drawing.columns))
    shorter = short != drawing.columns and _width(_fields(drawing.columns, 0, rows)) > room
    split = list(_split(short if shorter else drawing.columns, rows, room))
    (first, fields) = split.pop() if split else (0, ())
    before = max([_width(fields) + label, *(cell_len(_end(row)) for row in drawing.outside)])
    bar_room = width - before - BITS - 2
    bar_width = min(LONGEST_BAR, bar_room) if has_bits and bar_room >= SHORTEST_BAR else 0
    full = next(scale for scale in SCALES if scale >= max(_stored(drawing), default=0) or scale == SCALES[-1])
    pages = [_Page(own, place, label, False, 0, full) for place, own in split]
    return [*pages, _Page(fields, first, label, has_bits, bar_width, full)], shorter


def _split(columns: Sequence[Column], rows: Sequence[Row], room: int) -> Iterator[tuple[int, tuple[_Field, ...]]]:
    """Columns beside each other as long as they fit: the place of the first and all of them."""
    first = 0
    while first < len(columns):
        fits = (
            end for end in range(len(columns), first, -1) if _width(_fields(columns[first:end], first, rows)) <= room
        )
        end = next(fits, first + 1)
        yield first, tuple(_fields(columns[first:end], first, rows))
        first = end


def _width(fields: Sequence[_Field]) -> int:
    return sum(field.width for field in fields)


def _stored(drawing: Drawing) -> Iterator[float]:
    for row in (*drawing.blocks, *drawing.outside):
        if row.stored is not None:
            yield row.stored


def _fields(columns: Sequence[Column], first: int, rows: Sequence[Row]) -> list[_Field]:
    """Every column, from place `first`, as wide as its marks and its heading; the last of a path makes room for the path."""
    fields: list[_Field] = []
    for path, group in groupby(enumerate(columns, first), key=lambda entry: entry[1].path):
        own = [_Field(path, column.name, _widest(column.name, place, rows) + 2) for place, column in group]
        missing = cell_len(printable(path)) + 2 - _width(own)
        fields += [*own[:-1], _Field(path, own[-1].name, own[-1].width + max(missing, 0))]
    return fields


def _widest(name: str, place: int, rows: Sequence[Row]) -> int:
    marks = [cell.mark for cell in (row.cells[place] for row in rows) if cell]
    return max([cell_len(printable(name)), *(len(mark) for mark in marks)])


def _shortened(columns: Sequence[Column]) -> Iterator[Column]:
    """Names without `_proj`, where that leaves them different."""
    for column in columns:
        name = column.name.removesuffix("_proj")
        taken = {other.name for other in columns if other.path == column.path and other != column}
        yield column if name in taken or len(name) == len(column.name) else Column(column.path, name)


def _show_rows(console: Console, page: _Page, rows: Sequence[Row]) -> None:
    if not page.fields:
        return
    groups = ((printable(path), _width(list(own))) for path, own in groupby(page.fields, key=lambda field: field.path))
    paths = "".join(f"  {path}".ljust(width) for path, width in groups)
    names = "".join(f"{printable(field.name):>{field.width - 1}} " for field in page.fields)
    _print(console, Text(" " * page.label + paths, "bold"))
    _print(console, Text("block".rjust(page.label) + names + (f"{'bits':>{BITS}}" if page.bits else ""), "bold"))
    for row in rows:
        line = Text(row.label.rjust(page.label))
        for place, field in enumerate(page.fields):
            line.append_text(_shaded(row.cells[page.first + place], field.width))
        _print(console, line.append_text(_stored_text(page, row.stored)))


def _shaded(cell: Cell | None, width: int) -> Text:
    text = f"{cell.mark if cell else '':>{width - 1}} "
    if cell is None or cell.code is None:
        return Text(text)
    letters, colour = next((letters, colour) for most, letters, colour in SHADES if cell.code < most + 0.5)
    return Text(text, f"{letters} on {colour}")


def _stored_text(page: _Page, stored: float | None) -> Text:
    if not page.bits or stored is None:
        return Text()
    return Text(f"{bits_text(stored):>{BITS}}" + ("  " + bar(stored / page.full, page.bar) if page.bar else ""))


def _end(row: Row) -> str:
    """The name of a layer outside the blocks and its mark, with a gap."""
    mark = row.cells[0].mark if row.cells[0] else ""
    return f"{printable(row.label)}   {mark} "


def _show_outside(console: Console, page: _Page, drawing: Drawing) -> None:
    """Layers outside the blocks, whose names take the place of the columns, and the totals."""
    ends = [cell_len(_end(row)) for row in drawing.outside]
    width = max([page.width, *ends])
    if drawing.blocks and drawing.in_blocks is not None:
        _print(console, Text(f"{'all blocks':<{width}}").append_text(_stored_text(page, drawing.in_blocks)))
    for row in drawing.outside:
        cell = row.cells[0]
        room = (len(cell.mark) if cell else 0) + 2
        line = Text(printable(row.label) + " " * (width - cell_len(printable(row.label)) - room))
        _print(console, line.append_text(_shaded(cell, room)).append_text(_stored_text(page, row.stored)))
    if drawing.total is not None:
        _print(console, Text(f"{'all layers':<{width}}", "bold").append_text(_stored_text(page, drawing.total)))


def _show_legend(console: Console, drawing: Drawing, page: _Page, short: bool) -> None:
    phrases = list(drawing.legend)
    if page.bits:
        phrases.append("bits: stored bits a weight" + (f" (bars end at {page.full})" if page.bar else ""))
    if short:
        phrases.append("names without _proj")
    if phrases:
        say(console, "; ".join(phrases) + ".")


def _print(console: Console, line: Text) -> None:
    line.rstrip()
    console.print(line, no_wrap=True, overflow="ignore", crop=False, soft_wrap=True)
