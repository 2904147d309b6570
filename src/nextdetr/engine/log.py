"""What a run tells: a progress bar on the terminal, ``metrics.csv``, TensorBoard events, and curves at the end."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from nextdetr.files import write_text_atomic

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["METRIC_NAMES", "Display", "MetricsTable", "TensorBoard", "clock", "epoch_line", "shown_score"]

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
    """``metrics.csv``: one row an epoch; the metrics are empty where an epoch was not validated.

    Args:
        path: the file.
        terms: names of the loss terms.
        resume_epoch: rows of this and later epochs are dropped, as a resumed run writes them again.
        metrics: names of the scores of a validation.
    """

    def __init__(
        self, path: Path, terms: Sequence[str], resume_epoch: int = 0, metrics: Sequence[str] = METRIC_NAMES
    ) -> None:
        self.path = path
        self.columns = ["epoch", "step", "seconds", "learning_rate", "loss", *terms, *metrics]
        self.rows: list[dict[str, str]] = []
        if resume_epoch and path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["epoch"]) <= resume_epoch]

    def add(self, row: Mapping[str, float | int | None]) -> None:
        """Append a row and write the table, whole or not at all."""
        self.rows.append({name: _cell(row.get(name)) for name in self.columns})
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, self.columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text_atomic(self.path, buffer.getvalue())


def _cell(value: float | int | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.6g}"


class TensorBoard:
    """TensorBoard events, when the package is there; otherwise nothing, and ``available`` is False."""

    def __init__(self, directory: Path) -> None:
        self._writer: SummaryWriter | None = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._writer = SummaryWriter(str(directory))

    @property
    def available(self) -> bool:
        """Whether events are written."""
        return self._writer is not None

    def add(self, values: Mapping[str, float | int | None], step: int) -> None:
        """Write scalars of one step."""
        if self._writer is not None:
            for name, value in values.items():
                if value is not None:
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()


class Display:
    """Progress on standard error: a bar on a terminal, one line an epoch elsewhere.

    Args:
        enabled: whether to show anything.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.console = Console(file=sys.stderr, highlight=False, soft_wrap=True, quiet=not enabled)
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
        """Print a line that stays."""
        self.console.print(text, style=style, markup=False)

    def update(self, description: str, done: float, note: str) -> None:
        """Move the bar; ``done`` is a share, 0 to 1."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=description, completed=done, note=note)


def shown_score(score: float | None) -> str:
    """Return AP as people read it; it is undefined where the validation part has no box."""
    return "undefined" if score is None else f"{score:.4f}"


def epoch_line(epoch: int, epochs: int, row: Mapping[str, Any], pace: float, left: float | None) -> str:
    """Return the line that sums up one epoch."""
    score = ""
    if row.get("AP") is not None:
        score = f"  AP {row['AP']:.4f}  AP50 {row['AP50']:.4f}"
    return (
        f"epoch {epoch}/{epochs}  loss {row['loss']:.3f}{score}  rate {row['learning_rate']:.2e}"
        f"  {pace:.1f} images/s  left {clock(left)}"
    )
