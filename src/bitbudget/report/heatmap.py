"""A picture of the bits of every layer: blocks from top to bottom, linears from left to right, bars for whole blocks."""

import textwrap
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from bitbudget.report.drawing import Cell, Drawing, Row
from bitbudget.report.terminal import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

LEAST, MOST = 2.0, 9.0  # bits at the ends of the colours, the same in every picture
TICKS = (2, 3, 4, 5, 6, 7, 8)
COLOURS = "viridis"  # rises evenly in lightness: it also works without colours and for colour-blind readers
BEYOND = "#e0e0e0"  # floats
BAR = "#4a6a8a"
ROW, COLUMN, LETTER = 0.2, 0.62, 0.075  # inches; a letter of the small size
LEGEND_LETTER = 0.063  # inches
BARS = 2.4  # inches
SMALL = 7  # points
GAP = 0.6  # rows between the blocks and the layers outside them


def bits_figure(drawing: Drawing, title: str = "") -> "Figure":
    """The figure; colours are stored bits a weight, or bits of a code where stored bits are not known."""
    from matplotlib.figure import Figure

    rows = len(drawing.blocks) + len(drawing.outside) + (GAP if drawing.outside else 0)
    widths = [_inches(drawing, place) for place in range(len(drawing.columns))] or [2 * COLUMN]
    labels = max([5, *(len(row.label) for row in drawing.outside)]) * LETTER
    stored = drawing.total is not None
    width = max(labels + sum(widths) + (BARS if stored else 0) + 0.6, 5.5)
    legend = textwrap.fill("; ".join(drawing.legend) + ".", int(width / LEGEND_LETTER), break_on_hyphens=False)
    height = rows * ROW + 1.75 + 0.17 * legend.count("\n") + (0.3 if title else 0)
    figure = Figure(figsize=(width, height), layout="constrained")
    ratios = {"width_ratios": [sum(widths), BARS]} if stored else {}
    axes = figure.subplots(1, 2 if stored else 1, sharey=True, squeeze=False, gridspec_kw=ratios)[0]
    colours = _colours()
    _draw_cells(axes[0], drawing, widths, colours)
    if stored:
        _draw_bars(axes[1], drawing)
    bar = figure.colorbar(
        colours, ax=list(axes), location="top", aspect=50, ticks=TICKS, extend="max", pad=0.1 / height
    )
    bar.ax.set_xticklabels([str(tick) for tick in TICKS], fontsize=SMALL)
    bar.ax.minorticks_off()
    bar.set_label("colour: stored bits a weight" if stored else "colour: bits of a code", fontsize=SMALL + 1)
    figure.supxlabel(_plain(legend), fontsize=SMALL + 1, x=0.01, ha="left")
    if title:
        figure.suptitle(_plain(textwrap.shorten(title, int(width / LETTER), placeholder=" …")), fontsize=10)
    return figure


def _colours() -> "ScalarMappable":
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    return ScalarMappable(
        LogNorm(LEAST, MOST), colormaps[COLOURS].with_extremes(under=colormaps[COLOURS](0.0), over=BEYOND)
    )


def _inches(drawing: Drawing, place: int) -> float:
    marks = [len(cell.mark) for cell in (row.cells[place] for row in drawing.blocks) if cell]
    column = drawing.columns[place]
    alone = sum(other.path == column.path for other in drawing.columns) == 1
    letters = max([len(column.name), *marks, len(column.path) if alone else 0]) + 1
    return max(COLUMN, letters * LETTER)


def _draw_cells(axes: "Axes", drawing: Drawing, widths: Sequence[float], colours: "ScalarMappable") -> None:
    """Rectangles in inches from left to right, in rows from top to bottom, each with its mark."""
    edges = [sum(widths[:place], 0.0) for place in range(len(widths) + 1)]
    places = _places(drawing)
    for y, row in zip(places, drawing.blocks, strict=False):
        for place, cell in enumerate(row.cells):
            _draw_cell(axes, cell, (edges[place], y, widths[place]), colours)
    for y, row in zip(places[len(drawing.blocks) :], drawing.outside, strict=True):
        _draw_cell(axes, row.cells[0], (0.0, y, edges[-1]), colours)
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(max(places, default=0) + 0.5, -0.5)
    axes.set_yticks(places, [_plain(row.label) for row in (*drawing.blocks, *drawing.outside)], fontsize=SMALL)
    if drawing.blocks:
        _head(axes, "block", 0.0, (-4, 5), "right")
    centres = [(left + right) / 2 for left, right in zip(edges, edges[1:], strict=False)]
    names = [_plain(column.name) for column in drawing.columns]
    axes.set_xticks(centres[: len(names)], names, fontsize=SMALL)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    first = 0
    for path, group in groupby(drawing.columns, key=lambda column: column.path):
        end = first + len(list(group))
        _head(axes, _plain(path), (edges[first] + edges[end]) / 2, (0, 17), "center")
        if first:
            axes.plot([edges[first]] * 2, [-0.5, len(drawing.blocks) - 0.5], color="white", linewidth=4)
        first = end


def _head(axes: "Axes", text: str, x: float, points: tuple[int, int], align: str) -> None:
    """A heading above the cells, `points` to the right of x and above the upper edge."""
    where: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    axes.annotate(text, (x, 1), points, **where, ha=align, va="bottom", fontsize=SMALL, fontweight="bold")


def _draw_cell(axes: "Axes", cell: Cell | None, where: tuple[float, float, float], colours: "ScalarMappable") -> None:
    import numpy as np
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    if cell is None:
        return
    left, y, width = where
    bits = cell.code if cell.stored is None else cell.stored
    red, green, blue, _ = to_rgba(BEYOND) if bits is None else colours.to_rgba(np.array([bits]))[0]
    dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
    axes.add_patch(Rectangle((left, y - 0.5), width, 1, facecolor=(red, green, blue), edgecolor="white", linewidth=0.8))
    how: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": SMALL, "color": "white" if dark else "black"}
    axes.text(left + width / 2, y, _plain(cell.mark), **how)


def _draw_bars(axes: "Axes", drawing: Drawing) -> None:
    from matplotlib.ticker import MaxNLocator

    rows: list[tuple[float, Row]] = list(zip(_places(drawing), (*drawing.blocks, *drawing.outside), strict=True))
    values = [row.stored or 0.0 for _, row in rows]
    axes.barh([place for place, _ in rows], values, height=0.8, color=BAR)
    for (place, _), value in zip(rows, values, strict=True):
        where: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": SMALL}
        axes.annotate(f"{value:.2f}", (0, place), (3, 0), color="white", **where)
    axes.axvline(drawing.total or 0.0, color="black", linestyle="--", linewidth=0.8)
    axes.set_title(f"stored bits a weight\n(dashed: all layers, {drawing.total:.3f})", fontsize=SMALL)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.tick_params(axis="x", labelsize=SMALL)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _places(drawing: Drawing) -> list[float]:
    """Where the rows of blocks and of the layers outside them lie, from top to bottom."""
    blocks = len(drawing.blocks)
    before = blocks + (GAP if blocks else 0.0)
    return [*map(float, range(blocks)), *(before + place for place in range(len(drawing.outside)))]


def _plain(text: str) -> str:
    """Text that matplotlib shows as it is: without control characters, and no dollar begins a formula."""
    return printable(text).replace("$", r"\$")
