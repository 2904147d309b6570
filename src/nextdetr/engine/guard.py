"""Guard of a run with unlabelled images: if they harm it, the run goes back and continues without them.

Self-training mainly fails in one way: the student learns the teacher's mistakes, which then reinforce the teacher. On
``val`` this shows as an AP that falls and stays low. So once the unlabelled images are used, each best validation saves the
whole state in ``guard.ckpt``, with its scores. If at least ``PATIENCE`` validations in a row, over ``STAYS`` of the run,
are clearly below the best, the run returns to that state, which may be the best of all, and continues without the images.
How clearly depends on the number of images in ``val``: on nine, even the AP of labels alone ends 0.06 below its highest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextdetr.engine.best import luck
from nextdetr.engine.log import shown_score
from nextdetr.engine.state import read_state, write_state
from nextdetr.errors import WeightsError

if TYPE_CHECKING:
    from nextdetr.engine.loop import Loop

__all__ = ["Guard"]

PATIENCE = 3  # validations in a row
STAYS = 0.05  # share of the run; a few images are scored every few steps, and three such validations are no time
TOLERANCE = 0.02  # AP; smaller differences between validations are noise, with few images also larger ones
CLEARLY = 2  # times ``luck``, by which the last weights of a run may be worse: to go back takes more than to choose
FILE = "guard.ckpt"


class Guard:
    """Compares validations, keeps the state of the best, and returns to it.

    Args:
        loop: the run.
        tell: prints a line for the user.
        images: number of images of ``val``.
    """

    def __init__(self, loop: Loop, tell: Callable[[str], None], images: int) -> None:
        self.loop, self.tell = loop, tell
        self.tolerance = max(TOLERANCE, CLEARLY * luck(images))
        self.best: float | None = None
        self.stale = 0  # validations in a row that are clearly below the best
        self.since = 0.0  # progress of the run at the first of them

    @property
    def file(self) -> Path:
        """File of the kept state."""
        return self.loop.directory / FILE

    def begin(self, score: float | None) -> None:
        """Record the AP at which the unlabelled images join; ``cursor`` has all scores."""
        self.best, self.stale = None, 0
        if score is None or score != score:
            self.tell("val has no AP, so nothing guards this run: the unlabelled images may make it worse.")
            return
        self.best = score
        self._keep()

    def judge(self, score: float | None) -> bool:
        """Record a validation; return whether the run has gone back and must continue without the images.

        ``cursor`` has its scores, and those of the earlier state if the run has gone back.
        """
        if self.best is None or score is None:
            return False
        if score >= self.best:
            self.best, self.stale = score, 0
            self._keep()
            return False
        if not score < self.best - self.tolerance:
            self.stale = 0
            return False
        if not self.stale:
            self.since = self.loop.progress
        self.stale += 1
        if self.stale < PATIENCE or self.loop.progress - self.since < STAYS:
            return False
        self._return(score)
        return True

    def _keep(self) -> None:
        loop = self.loop
        if loop.main:
            ema = {} if loop.ema is None else loop.ema.state_dict()
            write_state(
                self.file, loop.cursor, model=loop.network.state_dict(), optimizer=loop.optimizer.state_dict(), ema=ema
            )
        loop.fabric.barrier()

    def _return(self, score: float) -> None:
        loop = self.loop
        why = f"AP on val has been below {shown_score(self.best)} for {self.stale} validations (now {shown_score(score)})"
        try:
            kept, state = read_state(self.file)
        except WeightsError:
            self.tell(f"{why}: the run continues without the unlabelled images, from here, as {self.file} is missing.")
            return
        loop.network.load_state_dict(state["model"])
        loop.optimizer.load_state_dict(state["optimizer"])
        if loop.ema is not None:
            loop.ema.load_state_dict(state["ema"])
        loop.cursor.metrics, loop.cursor.thresholds = kept.metrics, kept.thresholds
        self.tell(f"{why}: the run goes back to its best state and continues without the unlabelled images.")

    def finish(self) -> None:
        """Delete the state, which a finished run no longer needs."""
        if self.loop.main:
            self.file.unlink(missing_ok=True)

    def state_dict(self) -> dict[str, Any]:
        """State for resuming, beside the file."""
        return {"best": self.best, "stale": self.stale, "since": self.since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.best, self.stale = state["best"], int(state["stale"])
        self.since = float(state.get("since", 0.0))  # earlier states do not say
