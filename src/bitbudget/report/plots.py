"""Pictures of a plan or a checkpoint as PNG files: bits of every layer, the frontier, predicted against measured loss.

matplotlib is loaded when something is drawn. Figures are drawn without pyplot, so nothing stays behind in the process, and
in matplotlib's own style whatever the user's is: the same data give the same bytes.
"""

from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitbudget.checkpoint.atomic import output_errors, write_atomic
from bitbudget.errors import InputError
from bitbudget.report.curves import candidates, curve_of, frontier_figure, predicted_figure
from bitbudget.report.drawing import Layers, draw
from bitbudget.report.heatmap import bits_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bitbudget.allocation import Plan

DOTS_PER_INCH = 150
BITS, FRONTIER, PREDICTED = "bits.png", "frontier.png", "predicted.png"


def save_plots(
    directory: Path,
    layers: Layers,
    plan: "Plan | None" = None,
    guard: Mapping[str, Any] | None = None,
    title: str = "",
) -> list[Path]:
    """Draw what there is data for into a folder, which is made; returns the files written.

    layers: as `bits.show_bits` takes them, for bits.png. plan: for frontier.png, if its frontier was solved. guard: candidates
    measured against each other (`curves.candidates`), which appear in frontier.png and make predicted.png.

    Raises:
        InputError: matplotlib is not installed, or `guard` is damaged. OutputError: the folder cannot be written.
    """
    measured = candidates(guard)
    curve = curve_of(plan)
    figures: dict[str, Callable[[], Figure]] = {BITS: lambda: bits_figure(draw(layers), title)}
    if curve or measured:
        figures[FRONTIER] = lambda: frontier_figure(curve, measured, title)
    if any(candidate.comparable for candidate in measured):
        figures[PREDICTED] = lambda: predicted_figure(measured, title)
    pictures = {directory / name: png(figure) for name, figure in figures.items()}
    with output_errors(directory, sum(map(len, pictures.values()))):
        directory.mkdir(parents=True, exist_ok=True)
    for path, content in pictures.items():
        write_atomic(path, content)
    return list(pictures)


def png(figure: "Callable[[], Figure]") -> bytes:
    """The bytes of the PNG file of a figure. Raises InputError where matplotlib is not installed."""
    try:
        from matplotlib import style
    except ImportError as error:
        raise InputError(
            f"Pictures need the package matplotlib, which cannot be loaded ({error}). Install it (pip install matplotlib), or "
            "leave out --plots."
        ) from error
    content = BytesIO()
    with style.context("default"):
        # Software would name matplotlib's version.
        figure().savefig(content, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return content.getvalue()
