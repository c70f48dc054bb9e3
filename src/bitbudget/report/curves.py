"""Pictures of losses: the frontier of a plan with what else was tried, and predictions beside measurements."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from bitbudget.errors import InputError
from bitbudget.report.sizes import KIB, UNITS
from bitbudget.report.terminal import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from bitbudget.allocation import Plan

BYTES, MEMORY = "bytes", "memory"
AXES = {
    BYTES: "size of all layers",
    "disk": "size of the weight files",
    MEMORY: "size of all layers in memory",
    "nanoseconds": "time",
}
LOSS = "KL divergence, nats a token"
# Okabe and Ito's colours, which colour-blind readers tell apart; each comes with a mark of its own.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKS = "osD^vPXph"
MEASURED: Mapping[str, type] = {"bytes": int, "memory": int, "predicted": float, "kl": float, "kl_se": float}  # of a candidate
NAME_LETTERS = 80  # of a line of the legend
WIDTH, HEIGHT, LINE = 7.0, 4.6, 0.19  # inches


@dataclass(frozen=True)
class Candidate:
    """Something that was compared: bytes stored and in memory, predicted loss, measured KL with its standard error; None where not
    known.
    """

    name: str
    nbytes: int | None
    held: int | None
    predicted: float | None
    kl: float | None
    kl_se: float | None

    def size(self, dimension: str) -> int | None:
        """In a dimension of the solver."""
        return {BYTES: self.nbytes, MEMORY: self.held}.get(dimension)

    @property
    def comparable(self) -> bool:
        """Whether it has a prediction and a measurement that a logarithmic axis can show."""
        return _positive(self.predicted) and _positive(self.kl)


@dataclass(frozen=True)
class SolvedCurve:
    """Corners (cost, predicted loss) of the best plans, the plan that was chosen and its budget."""

    dimension: str
    corners: tuple[tuple[int, float], ...]
    cost: int | None
    loss: float | None
    budget: int | None


def candidates(guard: Mapping[str, Any] | None) -> list[Candidate]:
    """guard: {"candidates": [{"name", "bytes", "predicted", "kl", "kl_se", …}, …], "winner": name}, all but names optional.

    Raises:
        InputError: it is none.
    """
    try:
        return [
            Candidate(
                str(entry["name"]) + (" (winner)" if entry["name"] == (guard or {}).get("winner") else ""),
                *(None if entry.get(name) is None else kind(entry[name]) for name, kind in MEASURED.items()),
            )
            for entry in (guard or {}).get("candidates") or []
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"The comparison of candidates is damaged ({error!r}), so it cannot be drawn.") from error


def curve_of(plan: "Plan | None") -> SolvedCurve | None:
    """The frontier of a plan; None if none was solved."""
    if plan is None or plan.frontier is None:
        return None
    name = plan.frontier.dimension
    return SolvedCurve(name, plan.frontier.corners, plan.costs.get(name), plan.loss, plan.budgets.get(name))


def frontier_figure(curve: SolvedCurve | None, measured: Sequence[Candidate], title: str = "") -> "Figure":
    """Loss over size: best plans, the chosen one, its budget; candidates measured (filled) and predicted (open).

    Beside the whole of it, what lies near the candidates once more.
    """
    dimension = curve.dimension if curve else BYTES
    shown = [(one, size) for one in measured if (size := one.size(dimension)) is not None]
    sizes = [*(size for _, size in shown), *(_marked(curve) if curve else ())]
    unit, factor = _unit(dimension, max([*sizes, *(cost for cost, _ in (curve.corners if curve else ()))], default=1))
    near = curve is not None and bool(shown)
    figure, panels = _figure(title, 4 + len(shown), 2 if near else 1)
    for axes in panels:
        losses = [value for one, _ in shown for value in (one.predicted, one.kl)]
        if curve:
            losses += _draw_curve(axes, curve, unit, factor)
        for place, (one, size) in enumerate(shown):
            _draw_candidate(axes, one, size / factor, place)
        if shown:
            axes.plot([], [], " ", label="filled: measured, with standard error; open: predicted")
        axes.set_xlabel(f"{printable(AXES.get(dimension, dimension))}, {unit}" if unit else printable(dimension))
        axes.set_ylabel(LOSS)
        _logarithmic(axes, "y", losses)
    if near and curve:
        panels[0].set_title("all budgets", fontsize=9)
        panels[1].set_title("near the candidates", fontsize=9)
        _narrow(
            panels[1], [size / factor for size in sizes], [value for one, _ in shown for value in (one.predicted, one.kl)]
        )
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", fontsize=8, frameon=False)
    return figure


def predicted_figure(measured: Sequence[Candidate], title: str = "") -> "Figure":
    """Measured KL over predicted KL, with the diagonal on which both agree; names those that have no prediction."""
    figure, (axes,) = _figure(title, 2 + len(measured), square=True)
    shown = [one for one in measured if one.comparable]
    values = [value for one in shown for value in (one.predicted, one.kl) if value is not None]
    ends = [min(values) / 2, max(values) * 2]
    axes.plot(ends, ends, color="0.45", linestyle="--", linewidth=1.0, label="measured = predicted")
    half, twice = [end / 2 for end in ends], [end * 2 for end in ends]
    axes.fill_between(ends, half, twice, color="0.93", zorder=0, label="within a factor of 2")
    for place, one in enumerate(measured):
        if _positive(one.predicted) and _positive(one.kl):
            axes.errorbar([one.predicted], [one.kl], yerr=one.kl_se or None, capsize=4, **_look(place))
            axes.plot([], [], **_look(place), label=_name(one.name))
    for one in measured:
        if not one.comparable:
            axes.plot([], [], " ", label=_name(f"not shown: {one.name} ({_values(one)})"))
    axes.set_xlabel(f"predicted {LOSS}")
    axes.set_ylabel(f"measured {LOSS}")
    for axis in ("x", "y"):
        _logarithmic(axes, axis, values)
        axes.set(**{f"{axis}lim": ends})
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", fontsize=8, frameon=False)
    return figure


def _figure(title: str, lines: int, panels: int = 1, square: bool = False) -> "tuple[Figure, list[Axes]]":
    """A figure with room for a legend of so many lines below its panels."""
    from matplotlib.figure import Figure

    width = (WIDTH if panels == 1 else 1.5 * WIDTH) if not square else HEIGHT + 1.2
    figure = Figure(figsize=(width, HEIGHT + (0.4 if square else 0.0) + LINE * lines), layout="constrained")
    if title:
        figure.suptitle(_name(title), fontsize=10)
    found = list(figure.subplots(1, panels, squeeze=False)[0])
    for axes in found:
        axes.grid(color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if square:
            axes.set_box_aspect(1)
    return figure, found


def _marked(curve: SolvedCurve) -> list[int]:
    return [cost for cost in (curve.cost, curve.budget) if cost is not None]


def _draw_curve(axes: "Axes", curve: SolvedCurve, unit: str, factor: int) -> list[float | None]:
    """The best plans, budget and chosen plan; returns the losses drawn."""
    corners = [(cost / factor, loss) for cost, loss in curve.corners if _positive(loss)]
    sizes, losses = [size for size, _ in corners], [loss for _, loss in corners]
    axes.plot(sizes, losses, color="0.45", linewidth=1.2, label="best plans, predicted", zorder=1)
    if curve.budget is not None:
        budget = curve.budget / factor
        axes.axvline(
            budget, color="black", linestyle=":", linewidth=1.2, label=f"budget, {budget:,.2f} {unit}".rstrip()
        )
    if curve.cost is not None and _positive(curve.loss):
        where = curve.cost / factor
        label = f"chosen plan: {f'{where:,.2f} {unit}'.rstrip()}, predicted {curve.loss:.3g}"
        axes.plot([where], [curve.loss], "*", ms=14, color="#F0E442", mec="black", label=label, zorder=3)
    return [*losses, curve.loss]


def _draw_candidate(axes: "Axes", one: Candidate, size: float, place: int) -> None:
    look = _look(place)
    if _positive(one.predicted):
        axes.plot([size], [one.predicted], **look | {"markerfacecolor": "none"}, zorder=5)
    if _positive(one.kl):
        axes.errorbar([size], [one.kl], yerr=one.kl_se or None, capsize=4, **look, zorder=5)
    axes.plot([], [], **look, label=_name(one.name))


def _narrow(axes: "Axes", sizes: Sequence[float], losses: Sequence[float | None]) -> None:
    """Limits of a panel around some sizes and losses."""
    least, most = min(sizes), max(sizes)
    margin = max(0.3 * (most - least), 0.02 * most)
    axes.set_xlim(least - margin, most + margin)
    known = [loss for loss in losses if _positive(loss)]
    if known:
        axes.set_ylim(min(known) / 1.5, max(known) * 1.5)
        _logarithmic(axes, "y", known)


def _look(place: int) -> dict[str, Any]:
    colour, mark = COLOURS[place % len(COLOURS)], MARKS[place % len(MARKS)]
    return {"color": colour, "marker": mark, "markersize": 6, "linestyle": "none"}


def _values(one: Candidate) -> str:
    """What is known of a candidate, in words."""
    predicted = "not predicted" if one.predicted is None else f"predicted {one.predicted:.3g}"
    return f"{predicted}, " + ("not measured" if one.kl is None else f"measured {one.kl:.3g}")


def _unit(dimension: str, most: int) -> tuple[str, int]:
    """The unit of an axis, empty where none is known, and what one of it is."""
    if dimension == "nanoseconds":
        return "ms", 10**6
    if dimension not in (BYTES, "disk", MEMORY):
        return "", 1
    place = max(power for power in range(1, len(UNITS) + 1) if most >= KIB**power or power == 1)
    return UNITS[place - 1], KIB**place


def _logarithmic(axes: "Axes", which: str, values: Iterable[float | None]) -> None:
    """A logarithmic axis whose ticks are written out: at 1, 2 and 5 where few powers of ten are spanned."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    known = [value for value in values if value is not None and value > 0]
    wide = bool(known) and max(known) / min(known) > 1000
    axes.set(**{f"{which}scale": "log"})
    axis: Axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}" if value >= 1e-4 else f"{value:.0e}"))
    axis.set_minor_formatter(NullFormatter())


def _positive(value: float | None) -> TypeGuard[float]:
    return value is not None and 0 < value < float("inf")


def _name(text: str) -> str:
    return textwrap.fill(printable(text).replace("$", r"\$"), NAME_LETTERS)
