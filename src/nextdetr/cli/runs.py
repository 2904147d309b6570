"""``nextdetr runs``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from nextdetr.cli.common import Json, Verbose, print_json, say

if TYPE_CHECKING:
    from nextdetr.engine.runs import RunRow

__all__ = ["runs"]

#: Settings that the table shows, with the heads of their columns.
SHOWN = {
    "model": "model", "data": "data", "image_size": "size", "batch_size": "batch", "learning_rate": "rate", "seed": "seed",
}  # fmt: skip


def runs(
    folder: Annotated[str, Parameter(help="Folder to search for runs.")] = "runs",
    *,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """List the runs below a folder with their settings and AP, the best first, and where they are logged.

    Example: `nextdetr runs`; `--json` has all settings of each.
    """
    from nextdetr.engine.runs import runs as find
    from nextdetr.files import path_text

    result = find(folder)
    if json:
        print_json(result.to_json())
        return
    if not result.runs:
        say(f"{path_text(result.folder)}: no run in it.")
        return
    lines = [["run", "AP", "AP50", "best", "epochs", "time", *SHOWN.values()]]
    lines += [_cells(row, result.folder) for row in result.runs]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for place in _places(result.runs, result.folder):
        say(place)
    for row in result.runs:
        if row.problem is not None:
            sys.stderr.write(f"{path_text(row.problem)}\n")


def _places(rows: Iterable[RunRow], folder: str) -> list[str]:
    """Lines that say where the runs are logged, after an empty one; none where no run is."""
    lines = [
        f"{_name(row, folder)}: {tool} {place['run_id']}  {place.get('look', '')}".rstrip()
        for row in rows
        for tool, place in row.logs.items()
        if "run_id" in place  # TensorBoard's files need no name: they are in the run's folder
    ]
    return ["", *lines] if lines else []


def _name(row: RunRow, folder: str) -> str:
    from nextdetr.files import path_text

    name = Path(row.run).relative_to(folder)
    return path_text(Path(row.run).name if name == Path() else name)


def _cells(row: RunRow, folder: str) -> list[str]:
    from nextdetr.engine.log import clock

    scores = ["-" if value is None else f"{value:.4f}" for value in (row.AP, row.AP50)]
    best = "-" if row.best_epoch is None else str(row.best_epoch)
    settings = [_shown(key, row.settings.get(key)) for key in SHOWN]
    return [_name(row, folder), *scores, best, str(row.epochs), clock(row.seconds),
            *settings]  # fmt: skip


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key == "data" and isinstance(value, list):
        return "+".join(Path(str(each)).name for each in value)
    return Path(str(value)).name if key in ("model", "data") else f"{value:g}" if isinstance(value, float) else str(value)
