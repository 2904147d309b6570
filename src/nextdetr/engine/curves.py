"""Curves of a run, drawn from its ``metrics.csv``."""

from __future__ import annotations

import base64
import logging
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextdetr.engine.log import read_table
from nextdetr.files import atomic_write, optional_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_curves", "draw_loss", "html_curves", "plot_curves"]

_log = logging.getLogger(__name__)

FEW = 20  # epochs that each get a marker; a single one has no line


def draw_curves(table: Path, target: Path) -> None:
    """Draw loss, its terms, AP and the learning rate over the epochs.

    Args:
        table: a ``metrics.csv``.
        target: the picture, ``*.png``.
    """
    from matplotlib.figure import Figure  # no pyplot: nothing global, no window

    figure = Figure(figsize=(12, 4), layout="constrained")
    if plot_curves(figure, table):
        with optional_file(), atomic_write(target) as temporary:
            figure.savefig(temporary, dpi=110)


def plot_curves(figure: Figure, table: Path, *, ink: str = "black") -> bool:
    """Draw what :func:`draw_curves` draws on a figure, with the loss in the colour ``ink``.

    Returns:
        Whether there was anything to draw.
    """
    rows = _rows(table)
    if not rows:
        return False
    loss, terms, score = figure.subplots(1, 3)

    _draw_loss(loss, rows, ink)
    loss.set_ylim(0, None)
    for name in (name for name in rows[0] if name.startswith("loss_") and name.count("_") == 1):
        _plot(terms, *_series(rows, name), label=name.removeprefix("loss_"))
    terms.set(title="Last decoder layer's terms (weighted)", ylim=(0, None))
    if terms.lines:
        terms.legend()

    for name in ("AP", "AP50", "AP75"):
        epochs, values = _series(rows, name)
        if values:
            # Not every epoch is scored, so that all have a marker; not clipped, since an early AP is nearly 0.
            score.plot(epochs, values, marker=".", clip_on=False, label=f"{name} (last {values[-1]:.3f})")
    score.set(title="Validation, averaged weights", ylim=(0, 1))
    if score.lines:
        score.legend()
    for axis in (loss, terms, score):
        _count_epochs(axis)
    return True


def html_curves(table: Path) -> str:
    """Return the picture of :func:`draw_curves` for a notebook; "" where there is nothing to draw."""
    from matplotlib.figure import Figure

    figure, file = Figure(figsize=(12, 4), layout="constrained"), BytesIO()
    if not plot_curves(figure, table):
        return ""
    figure.savefig(file, format="png", dpi=80)
    return f'<img src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}" alt="curves">'


def draw_loss(table: Path, target: Path, title: str) -> None:
    """Draw the loss and the learning rate over the epochs, for runs without loss terms or scores.

    Args:
        table: a ``metrics.csv``.
        target: the picture, ``*.png``.
        title: title of the picture.
    """
    from matplotlib.figure import Figure

    rows = _rows(table)
    if not rows:
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    _draw_loss(axis, rows)
    axis.set_title(title)
    _count_epochs(axis)
    with optional_file(), atomic_write(target) as temporary:
        figure.savefig(temporary, dpi=110)


def _rows(table: Path) -> list[dict[str, str]]:
    if not table.is_file():  # it could not be written; a warning was shown then
        return []
    try:
        return read_table(table)
    except ValueError as error:
        _log.warning("%s: cannot be read (%s), so its curves are not drawn.", table, error)
        return []


def _draw_loss(axis: Axes, rows: list[dict[str, str]], ink: str = "black") -> None:
    _plot(axis, *_series(rows, "loss"), color=ink)
    axis.set(title="Training loss", ylabel="loss")
    rate = axis.twinx()
    _plot(rate, *_series(rows, "learning_rate"), color="tab:orange", linestyle=":", linewidth=1)
    rate.set_ylabel("learning rate (dotted)", color="tab:orange")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))


def _plot(axis: Axes, epochs: list[int], values: list[float], **style: Any) -> None:
    axis.plot(epochs, values, marker="." if len(values) <= FEW else None, **style)


def _count_epochs(axis: Axes) -> None:
    """Put the ticks of the horizontal axis at whole epochs, also where there is only one."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axis.set_xlabel("epoch")
    axis.grid(alpha=0.3)


def _series(rows: list[dict[str, str]], name: str) -> tuple[list[int], list[float]]:
    kept = [(int(row["epoch"]), float(row[name])) for row in rows if row.get(name)]
    return [epoch for epoch, _ in kept], [value for _, value in kept]
