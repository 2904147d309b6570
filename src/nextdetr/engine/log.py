"""Output of a run: a progress bar on the terminal, and ``metrics.csv``; other tools are in ``engine/loggers``."""

from __future__ import annotations

import csv
import io
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from nextdetr.files import optional_file, write_text_atomic

__all__ = ["METRIC_NAMES", "Display", "MetricsTable", "clock", "epoch_line", "read_table", "shown_score"]

_log = logging.getLogger(__name__)

METRIC_NAMES = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip


def clock(seconds: float | None) -> str:
    """Return ``h:mm:ss`` or ``m:ss``."""
    if seconds is None:
        return "-:--"
    whole = int(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class MetricsTable:
    """``metrics.csv``: one row per epoch; the metrics are empty for epochs without validation.

    Args:
        path: the file.
        terms: names of the loss terms, if known, beside those of the rows that are kept.
        resume_epoch: rows from this epoch on are dropped, since a resumed run writes them again.
        metrics: names of the validation metrics.
    """

    def __init__(
        self, path: Path, terms: Sequence[str] | None, resume_epoch: int = 0, metrics: Sequence[str] = METRIC_NAMES
    ) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []
        if resume_epoch and path.is_file():
            try:
                self.rows = [row for row in read_table(path) if int(row["epoch"]) <= resume_epoch]
            except ValueError as error:
                kept = path.replace(path.with_name(f"{path.stem}-damaged{path.suffix}"))
                _log.warning("%s: cannot be read (%s); renamed to %s, and a new file started.", path, error, kept.name)
        first = ["epoch", "step", "seconds", "learning_rate", "loss"]
        # A resumed run may have fewer terms, but the epochs before keep theirs.
        known = [name for name in (self.rows[0] if self.rows else ()) if name not in (*first, *metrics)]
        self.columns = [*first, *dict.fromkeys([*known, *(terms or ())]), *metrics]

    def add(self, row: Mapping[str, float | int | None]) -> None:
        """Append a row and write the table atomically; rows that a full disk kept out are written with a later one."""
        self.rows.append({name: _cell(row.get(name)) for name in self.columns})
        self._write()

    def amend(self, row: Mapping[str, float | int | None]) -> None:
        """Set values in the row of an epoch and write the table as ``add`` does; creates the row if it is missing."""
        if not self.rows or self.rows[-1]["epoch"] != _cell(row["epoch"]):
            self.add(row)
            return
        self.rows[-1] |= {name: _cell(value) for name, value in row.items()}
        self._write()

    def _write(self) -> None:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, self.columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(self.rows)
        with optional_file():
            write_text_atomic(self.path, buffer.getvalue())


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a ``metrics.csv``, all values as text; empty if there are none.

    Raises:
        ValueError: the file is damaged or not a table of metrics.
    """
    with path.open(encoding="utf-8", newline="") as file:
        try:
            table = csv.DictReader(file)
            rows = list(table)
        except csv.Error as error:
            raise ValueError(str(error)) from error
    if "epoch" not in (table.fieldnames or ()):
        raise ValueError("it has no column epoch")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ValueError(f"line {number} does not have as many values as the first")
        int(row["epoch"])
        for value in filter(None, row.values()):
            float(value)
    return rows


def _cell(value: float | int | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.6g}"


class _Tolerant:
    """A text stream that never fails: a run must not end because its terminal is gone or cannot show a character."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise OSError("no stream")
        return self._stream.fileno()

    def write(self, text: str) -> int:
        if self._stream is not None:
            try:
                try:
                    self._stream.write(text)
                except UnicodeEncodeError:
                    self._stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
            except (OSError, ValueError):  # a closed pipe or stream
                self._stream = None
            except RuntimeError:  # a line printed by a signal handler during another write: only that line is lost
                pass
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._stream = None
            except RuntimeError:
                pass


class Display:
    """Progress on standard error: a bar on a terminal, one line per epoch elsewhere.

    Args:
        enabled: whether to show anything.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.console = Console(file=cast(TextIO, _Tolerant(sys.stderr)), highlight=False, soft_wrap=True, quiet=not enabled)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        if enabled and self.console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[note]}"),
                console=self.console, transient=True,
            )  # fmt: skip

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
            self._task = self._progress.add_task("", total=1.0, note="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._progress is not None:
            self._progress.stop()

    def line(self, text: str, *, style: str | None = None) -> None:
        """Print a permanent line."""
        self.console.print(text, style=style, markup=False)

    def update(self, description: str, done: float, note: str) -> None:
        """Update the bar; ``done`` is a fraction, 0 to 1."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=description, completed=done, note=note)


def shown_score(score: float | None) -> str:
    """Format AP for people; undefined if the validation split has no box."""
    return "undefined" if score is None else f"{score:.4f}"


def epoch_line(epoch: int, epochs: int, row: Mapping[str, Any], pace: float, left: float | None) -> str:
    """Return the line that summarises an epoch."""
    score = ""
    if row.get("AP") is not None:
        score = f"  AP {row['AP']:.4f}  AP50 {row['AP50']:.4f}"
    return (
        f"epoch {epoch}/{epochs}  loss {row['loss']:.3f}{score}  learning rate {row['learning_rate']:.2e}"
        f"  {pace:.1f} images/s  {clock(left)} left"
    )
