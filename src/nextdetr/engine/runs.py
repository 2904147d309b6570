"""List the runs below a folder with their settings and scores, from the files of the runs; for ``nextdetr runs``."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nextdetr.config_file import read_config_file
from nextdetr.engine.log import read_table
from nextdetr.engine.loggers.places import read_places
from nextdetr.engine.loggers.tools import Place
from nextdetr.errors import ConfigError, DataError
from nextdetr.weights.folder import read_notes

__all__ = ["RunRow", "RunsResult", "runs"]

CONFIG, TABLE, BEST = "config.yaml", "metrics.csv", "best.safetensors"


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run.

    Attributes:
        run: folder of the run.
        AP: AP of the best weights on ``val``, 0 to 1, as ``best.safetensors`` states it, else the highest of the run; None
            without a score, as in pre-training.
        AP50: AP50 of the same weights.
        best_epoch: their epoch, from 1; None if it is not known.
        epochs: number of epochs trained.
        seconds: time spent.
        loss: loss of the last epoch.
        settings: all settings, as in ``config.yaml``.
        logs: by tool (``mlflow``, …) its ``run_id``, and where to ``look`` at it; see ``train --log``.
        problem: why a file of the run cannot be read, a sentence; None if all can.
    """

    run: str
    AP: float | None = None
    AP50: float | None = None
    best_epoch: int | None = None
    epochs: int = 0
    seconds: float | None = None
    loss: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    logs: dict[str, Place] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class RunsResult:
    """What ``runs`` returns; the fields of the JSON result.

    Attributes:
        folder: the folder that was searched.
        runs: best AP first, those without one last.
    """

    folder: str
    runs: list[RunRow]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON result of the command."""
        return {"command": "runs", **asdict(self)}


def runs(folder: str | Path = "runs") -> RunsResult:
    """List the runs below a folder, or the run in it.

    Args:
        folder: searched to any depth; links to folders are not followed, and folders of runs are not searched further.

    Raises:
        DataError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; name the one that holds the runs.")
    rows = [_row(path) for path in _folders(folder)]
    return RunsResult(str(folder), sorted(rows, key=lambda row: (row.AP is None, -(row.AP or 0.0), row.run)))


def _folders(top: Path) -> Iterator[Path]:
    for name, folders, files in os.walk(top):
        if CONFIG in files and TABLE in files:
            folders.clear()
            yield Path(name)


def _row(path: Path) -> RunRow:
    settings: dict[str, Any] = {}
    logs, problem = _logs(path)
    try:
        # As in JSON: a hand-edited file may hold dates
        settings = {
            key: value if isinstance(value, str | int | float | list | dict | None) else str(value)
            for key, value in read_config_file(path / CONFIG).items()
        }
        table = read_table(path / TABLE)
    except ConfigError as error:
        return RunRow(str(path), logs=logs, problem=str(error))
    except (OSError, ValueError) as error:
        problem = f"{path / TABLE}: cannot be read ({error})."
        return RunRow(str(path), settings=settings, logs=logs, problem=problem)
    if not table:
        return RunRow(str(path), settings=settings, logs=logs, problem=problem)
    last = table[-1]
    return RunRow(
        str(path), *_best(path, table), int(last["epoch"]), _number(last.get("seconds")), _number(last.get("loss")),
        settings, logs, problem,
    )  # fmt: skip


def _best(path: Path, table: Sequence[dict[str, str]]) -> tuple[float | None, float | None, int | None]:
    """Return AP, AP50 and epoch of a run's best weights, which with few images of ``val`` need not have its highest AP."""
    scored = [row for row in table if row.get("AP")]
    best = max(scored, key=lambda row: float(row["AP"]), default={})
    if scored and not float(best["AP"]):  # an AP of 0 never stays the best
        best = scored[-1]
    kept = _kept(path)
    if kept:
        same = [row for row in scored if all(_is_near(row.get(name), value) for name, value in kept.items())]
        if not same:
            return kept["AP"], kept.get("AP50"), None
        best = best if best in same else same[-1]
    return _number(best.get("AP")), _number(best.get("AP50")), int(best["epoch"]) if best else None


def _kept(path: Path) -> dict[str, float]:
    """Return AP and AP50 as the file of the best weights states them; empty if it does not, as after ``import-run``."""
    try:
        stated = json.loads(read_notes(path / BEST).get("metrics", "{}"), parse_int=float)
    except (ValueError, RecursionError):
        return {}
    scores = {name: stated.get(name) for name in ("AP", "AP50")} if isinstance(stated, dict) else {}
    known = {name: value for name, value in scores.items() if isinstance(value, float) and math.isfinite(value)}
    return known if "AP" in known else {}


def _is_near(text: str | None, value: float) -> bool:
    """Whether a cell of the table, which has six digits, is of this value."""
    return bool(text) and math.isclose(float(text or 0), value, rel_tol=1e-5, abs_tol=1e-9)


def _logs(path: Path) -> tuple[dict[str, Place], str | None]:
    """Return where the run is logged, or why that cannot be read."""
    try:
        return read_places(path), None
    except ValueError as error:
        return {}, str(error)


def _number(text: str | None) -> float | None:
    return float(text) if text else None
