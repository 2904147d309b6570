"""A table of speeds for people: as lines, as a plot on the terminal, and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nextdetr.errors import ConfigError
from nextdetr.files import atomic_write
from nextdetr.inference.speed import SpeedPoint, SpeedTable

__all__ = ["draw_points", "plot_lines", "point_lines", "table_lines"]

WIDTH, HEIGHT = 56, 10  # of a plot on the terminal, characters


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

    Raises:
        ConfigError: there is no such format.
    """
    from matplotlib.figure import Figure  # no pyplot: nothing global, no window

    figure = Figure(figsize=(7, 5), layout="constrained")
    kind = path.suffix.lstrip(".").lower() or "png"
    if kind not in figure.canvas.get_supported_filetypes():
        raise ConfigError(f"--plot {path}: the plot cannot be written as .{kind}: end the name in .png, .svg or .pdf.")
    axes = figure.subplots()
    axes.plot([point.latency_ms for point in table.points], [point.score for point in table.points], "-", color="0.8")
    for measured, style, label in ((True, "o", "measured"), (False, "x", "estimated")):
        shown = [point for point in table.points if point.measured is measured]
        if shown:
            axes.plot([point.latency_ms for point in shown], [point.score for point in shown], style, label=label)
    for point in table.points:
        text = f"{point.image_size} px\n{point.queries} queries\n{point.layers} layer{'s' if point.layers > 1 else ''}"
        place = (point.latency_ms, point.score)
        axes.annotate(text, place, (7, -4), textcoords="offset points", fontsize="x-small", va="top", linespacing=0.95)
    if table.chosen is not None:
        axes.plot([table.chosen.latency_ms], [table.chosen.score], "*", markersize=14, label="chosen")
    axes.axvline(table.asked_ms, linestyle="--", color="0.5", label="asked for")
    fastest, slowest = table.points[0].latency_ms, max(table.points[-1].latency_ms, table.asked_ms)
    room = 0.15 * (slowest - fastest) or 1.0  # for the labels, which stand at the right of their points
    axes.set(xlabel=f"milliseconds an image, {_machines(table)}", ylabel="AP", xlim=(fastest - room / 2, slowest + room))
    axes.margins(y=0.12)
    axes.legend(fontsize="small")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=kind)
