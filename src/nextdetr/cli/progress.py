"""How far a video is, on standard error: a bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from nextdetr.files import path_text

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from nextdetr.inference.tally import VideoTally

__all__ = ["VideoProgress"]

EVERY = 10.0  # seconds between the lines of a log


class VideoProgress:
    """Shows frames done, frames a second and the time that is left.

    Args:
        quiet: show nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._video: VideoTally | None = None
        self._said = time.monotonic()

    def update(self, video: VideoTally) -> None:
        """Show how far a video is."""
        if self._quiet:
            return
        if sys.stderr.isatty():
            self._draw(video)
        elif time.monotonic() - self._said >= EVERY:
            self._said = time.monotonic()
            sys.stderr.write(f"{path_text(video.path)}: {_text(video)}\n")

    def _draw(self, video: VideoTally) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[text]}"))
            # Lines of the result are printed above the bar where both go to the terminal, and are left alone elsewhere.
            self._bar = Progress(
                *columns, console=Console(file=sys.stderr), transient=True, redirect_stdout=sys.stdout.isatty()
            )
            self._bar.start()
        if video is not self._video:
            self._video = video
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            name = video.path if "://" in video.path else Path(video.path).name  # leaves room for the bar
            self._task = self._bar.add_task(path_text(name), total=video.expected or None, text="")
        assert self._task is not None
        self._bar.update(self._task, completed=video.frames, text=_text(video))

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._video = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _text(video: VideoTally) -> str:
    total = f" of {max(video.expected, video.frames):,}" if video.expected else ""
    speed = f", {video.rate:.1f} a second" if video.rate else ""
    left = "" if video.left is None else f", {_clock(video.left)} left"
    return f"{video.frames:,}{total} frames{speed}{left}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
