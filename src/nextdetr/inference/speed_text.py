"""A table of speeds for people: as lines, as a plot on the terminal, and as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nextdetr.errors import ConfigError
from nextdetr.files import atomic_write
from nextdetr.inference.speed import SpeedPoint, SpeedTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_points", "number_offsets", "plot_lines", "point_lines", "table_lines"]

WIDTH, HEIGHT = 56, 10  # of a plot on the terminal, characters
# of the numbers in a picture, in points of type: their size, the steps away from a point, and half the width of a mark
_TYPE, _STEP, _MARK, _STAR = 8, 12.0, 4.0, 7.0
# Where a number is written, relative to its point: the curve rises, so rather below it on the right, or above on the left.
_DIRECTIONS = ((0.7, -0.7), (-0.7, 0.7), (0.0, -1.0), (0.0, 1.0), (1.0, 0.0), (-1.0, 0.0), (-0.7, -0.7), (0.7, 0.7))


def table_lines(table: SpeedTable) -> list[str]:
    """Return the table as lines, with what was asked and what keeps it."""
    kept = "nothing takes so little" if table.chosen is None else f"kept by {table.chosen.text}"
    return [
        f"speed contract: at most {table.asked_ms:g} ms an image; {kept}",
        *point_lines(table.points, table.chosen),
        f"AP on {table.images} validation images; ~ marks a time that is estimated from measured ones",
    ]


def point_lines(points: Sequence[SpeedPoint], chosen: SpeedPoint | None = None) -> list[str]:
    """Return points as lines under a heading; the chosen one is marked."""
    lines = [f"  {'px':>5} {'queries':>8} {'layers':>7} {'AP':>7} {'ms':>9}  on"]
    for point in points:
        score = "-" if point.AP is None else f"{point.AP:.4f}"
        mark, about = ("*" if point == chosen else " "), ("" if point.measured else "~")
        lines.append(
            f"{mark} {point.image_size:>5} {point.queries:>8} {point.layers:>7} {score:>7} "
            f"{about + format(point.latency_ms, '.1f'):>9}  {point.machine}"
        )
    return lines


def plot_lines(table: SpeedTable) -> list[str]:
    """Return AP over milliseconds as a drawing of characters: ``o`` a point, ``*`` the chosen one, ``|`` what was asked."""
    points = table.points
    right = 1.05 * max(table.asked_ms, *(point.latency_ms for point in points))
    low, high = min(point.score for point in points), max(point.score for point in points)
    span = high - low or 1.0
    cells = [[" "] * WIDTH for _ in range(HEIGHT)]
    asked = min(WIDTH - 1, int(table.asked_ms / right * WIDTH))
    for line in cells:
        line[asked] = "|"
    for point in points:
        row = round((HEIGHT - 1) * (high - point.score) / span)
        cells[row][min(WIDTH - 1, int(point.latency_ms / right * WIDTH))] = "*" if point == table.chosen else "o"
    lines = [f"{high:8.4f} |" + "".join(cells[0]).rstrip()]
    lines += ["         |" + "".join(line).rstrip() for line in cells[1:-1]]
    lines += [f"{low:8.4f} |" + "".join(cells[-1]).rstrip(), "      AP +" + "-" * WIDTH]
    return [*lines, f"          0{f'{right:.0f} ms':>{WIDTH - 1}}"]


def _machines(table: SpeedTable) -> str:
    """Name the machine of the points, with the runtime where all have the same."""
    named = sorted({point.machine for point in table.points})
    places = sorted({name.split(" on ", 1)[-1] for name in named})
    return named[0] if len(named) == 1 else " and ".join(places)


def draw_points(table: SpeedTable, path: Path) -> None:
    """Draw AP over latency as a picture, in the format of the path's ending; PNG without one.

    The points are numbered, and a list beside the plot has the setting of each: at the points, which may be close, there is
    no room for it.

    Raises:
        ConfigError: there is no such format.
    """
    from matplotlib.figure import Figure  # no pyplot: nothing global, no window
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(9, max(5.0, 1.5 + 0.2 * len(table.points))), layout="constrained")
    kind = path.suffix.lstrip(".").lower() or "png"
    if kind not in figure.canvas.get_supported_filetypes():
        raise ConfigError(f"--plot {path}: the plot cannot be written as .{kind}: end the name in .png, .svg or .pdf.")
    axes = figure.subplots()
    _draw_curve(axes, table)
    listed = [
        Line2D([], [], linestyle="", label=f"{number}: {_setting(point)}")
        for number, point in enumerate(table.points, start=1)
    ]
    figure.legend(handles=[*axes.get_legend_handles_labels()[0], *listed], loc="outside right upper", fontsize="small")
    figure.draw_without_rendering()  # only now the places of the points in the picture are known
    _number(axes, table)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=kind)


def _draw_curve(axes: Axes, table: SpeedTable) -> None:
    """Draw the points, the one that was chosen, and the latency that was asked for."""
    axes.plot([point.latency_ms for point in table.points], [point.score for point in table.points], "-", color="0.8")
    for measured, style, label in ((True, "o", "measured"), (False, "x", "estimated")):
        shown = [point for point in table.points if point.measured is measured]
        if shown:
            axes.plot([point.latency_ms for point in shown], [point.score for point in shown], style, label=label)
    if table.chosen is not None:
        axes.plot([table.chosen.latency_ms], [table.chosen.score], "*", markersize=2 * _STAR, label="chosen")
    axes.axvline(table.asked_ms, linestyle="--", color="0.5", label="asked for")
    fastest, slowest = table.points[0].latency_ms, max(table.points[-1].latency_ms, table.asked_ms)
    room = 0.08 * (slowest - fastest) or 1.0
    axes.set(xlabel=f"milliseconds an image\n{_machines(table)}", ylabel="AP", xlim=(fastest - room, slowest + room))
    axes.margins(y=0.12)


def _setting(point: SpeedPoint) -> str:
    return f"{point.image_size} px, {point.queries} queries, {point.layers} layer{'s' if point.layers > 1 else ''}"


def _number(axes: Axes, table: SpeedTable) -> None:
    """Write its number at each point, with a line to the point if it is not next to it."""
    places = [(point.latency_ms, point.score) for point in table.points]
    spots = axes.transData.transform(places) * 72 / axes.figure.dpi
    marks = [_STAR if point == table.chosen else _MARK for point in table.points]
    offsets = number_offsets(spots.tolist(), marks)
    for number, (place, offset) in enumerate(zip(places, offsets, strict=True), start=1):
        far = math.hypot(*offset) > _STEP + 1
        text = axes.annotate(
            str(number), place, offset, textcoords="offset points", fontsize=_TYPE, ha="center", va="center",
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": "0.5", "shrinkB": _MARK} if far else None,
        )  # fmt: skip
        text.set_in_layout(False)  # or the points would move


def number_offsets(spots: Sequence[tuple[float, float]], marks: Sequence[float]) -> list[tuple[float, float]]:
    """Return where to write the number of each point, so that no number covers another one or a point.

    Args:
        spots: x and y of each point, in points of type, y upwards.
        marks: half the width of the mark at each point, likewise.

    Returns:
        The middle of each number, relative to its point, as near to it as there is room.
    """
    taken = [(x, y, mark, mark) for (x, y), mark in zip(spots, marks, strict=True)]  # middle, half the width and height
    offsets = []
    for number, (x, y) in enumerate(spots, start=1):
        wide, high = (0.35 * len(str(number)) + 0.1) * _TYPE, 0.6 * _TYPE
        # Each number and mark is in the way of three steps straight down at most, so there is room within these.
        tried = ((step * _STEP * a, step * _STEP * b) for step in range(1, 6 * len(spots) + 2) for a, b in _DIRECTIONS)
        offset = next(
            (right, up)
            for right, up in tried
            if not any(abs(x + right - u) < wide + w and abs(y + up - v) < high + h for u, v, w, h in taken)
        )
        taken.append((x + offset[0], y + offset[1], wide, high))
        offsets.append(offset)
    return offsets
