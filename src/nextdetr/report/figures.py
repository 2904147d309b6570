"""Diagrams of a report: matplotlib SVGs that use the page's colours, light or dark."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nextdetr.files import path_text
from nextdetr.inference.drawing import COLOURS
from nextdetr.report.calibration import Calibration
from nextdetr.report.thresholds import GRID, Curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["INK", "bars", "confidence_figure", "recall_figure", "reliability_figure", "themed"]

#: Colours that are replaced by the page's variables; diagrams use them for nothing else.
_VARIABLES = {"#010203": "var(--ink)", "#a1b2c3": "var(--line)", "#0a84c8": "var(--accent)"}
INK, LINE, ACCENT = _VARIABLES
STYLE: Any = {
    "svg.fonttype": "none", "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": LINE, "xtick.color": INK,
    "ytick.color": INK, "axes.titlecolor": INK, "grid.color": LINE, "grid.alpha": 0.5, "axes.grid": True,
    "axes.spines.top": False, "axes.spines.right": False, "font.size": 11, "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "legend.frameon": False, "font.family": "sans-serif", "savefig.transparent": True, "text.parse_math": False,
}  # fmt: skip
#: With more classes than this, lines are thin and unnamed, beside the mean.
NAMED = 10
RECALLS = np.linspace(0.0, 1.0, 101)


@contextlib.contextmanager
def themed(name: str, width: float = 6.4, height: float = 4.0) -> Iterator[tuple[Figure, list[str]]]:
    """Yield a figure to draw on, and a list that receives its SVG.

    Args:
        name: unique name of the figure on its page.
        width: in inches, at 72 pixels.
        height: likewise.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):  # ids on one page must be unique
        figure, result = Figure(figsize=(width, height), layout="constrained"), list[str]()
        yield figure, result
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        result.append(_embedded(buffer.getvalue(), name))


def _embedded(svg: str, name: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1 aria-hidden="true"', svg, count=1)
    svg = re.sub(r'\bid="(?![mp][0-9a-f]{10}")[^"]*"', "", svg)  # names of groups, the same in every figure
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg


def recall_figure(precision: NDArray[np.float64], classes: Sequence[str]) -> str:
    """Precision over recall at IoU 0.5, from [R, C]."""
    with themed("recall") as (figure, result):
        axis = figure.subplots()
        _lines(axis, RECALLS, precision.T, classes)
        axis.set(title="Precision over recall (IoU 0.5)", xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    return result[0]


def confidence_figure(curves: Curves, classes: Sequence[str], least: NDArray[np.floating]) -> str:
    """F1 over confidence at IoU 0.5, with the threshold of each class."""
    with themed("confidence") as (figure, result):
        axis = figure.subplots()
        _lines(axis, GRID, curves.f1, classes)
        if len(classes) <= NAMED:
            for index, threshold in enumerate(least):
                height = np.interp(threshold, GRID, np.nan_to_num(curves.f1[index]))
                axis.plot([threshold], [height], marker="o", color=_colour(index), markersize=6)
        axis.set(title="F1 over confidence (IoU 0.5)", xlabel="confidence", ylabel="F1", xlim=(0, 1), ylim=(0, 1.02))
    return result[0]


def reliability_figure(calibration: Calibration) -> str:
    """Fraction of correct detections over their confidence, and their number."""
    with themed("reliability") as (figure, result):
        axis, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        middle, width = (calibration.edges[1:] + calibration.edges[:-1]) / 2, np.diff(calibration.edges) * 0.9
        axis.bar(middle, np.nan_to_num(calibration.precision), width, color=ACCENT, alpha=0.75, label="share that is right")
        axis.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1, label="perfectly calibrated")
        axis.set(title="Reliability (IoU 0.5)", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        axis.legend(loc="upper left")
        below.bar(middle, calibration.counts, width, color=ACCENT, alpha=0.75)
        below.set(xlabel="confidence", ylabel="detections")
    return result[0]


def bars(name: str, title: str, labels: Sequence[str], values: Sequence[float], unit: str) -> str:
    """Horizontal bars with their values."""
    with themed(name, height=0.8 + 0.4 * len(labels)) as (figure, result):
        axis = figure.subplots()
        drawn = axis.barh(range(len(labels)), values, color=ACCENT, alpha=0.85)
        axis.bar_label(drawn, labels=[f"{value:.3f}" for value in values], padding=4)
        axis.set(title=title, xlabel=unit, yticks=range(len(labels)), yticklabels=labels)
        axis.set_xlim(0, max([*values, 1e-3]) * 1.15)
        axis.invert_yaxis()
        axis.grid(axis="y", visible=False)
    return result[0]


def _lines(axis: Axes, places: NDArray[np.float64], rows: NDArray[np.float64], classes: Sequence[str]) -> None:
    """A line per class, and their mean."""
    shown: list[Any] = [row for row in rows if not np.isnan(row).all()]
    named = len(classes) <= NAMED
    for index, row in enumerate(rows):
        if np.isnan(row).all():
            continue
        style: dict[str, Any] = {"color": LINE, "linewidth": 0.7}
        if named:
            style = {"color": _colour(index), "linewidth": 1.6, "label": path_text(classes[index])}
        axis.plot(places, row, **style)
    if len(shown) > 1:
        with np.errstate(invalid="ignore"):
            axis.plot(places, np.nan_to_num(shown).mean(0), color=INK, linewidth=2.2, linestyle="--", label="mean")
    if axis.lines and (named or len(shown) > 1):
        axis.legend(loc="best", fontsize=10)


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]
