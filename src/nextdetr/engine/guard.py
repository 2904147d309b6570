"""The guard of a run with unlabelled images: where they do harm, the run goes back and on without them.

Self-training fails in one way above all: the teacher's mistakes become the student's, and then the teacher's own, more
surely. On ``val`` that is an AP that falls and stays down. So from where the unlabelled images join, each best validation
leaves its whole state in ``guard.ckpt``; when ``PATIENCE`` validations in a row stay ``TOLERANCE`` below the best, the run
returns to that state and learns from the labels alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextdetr.engine.log import shown_score
from nextdetr.engine.state import read_state, write_state
from nextdetr.errors import WeightsError

if TYPE_CHECKING:
    from nextdetr.engine.loop import Loop

__all__ = ["Guard"]

PATIENCE = 3  # validations in a row
TOLERANCE = 0.02  # AP; less is what two validations of a run differ by anyway
FILE = "guard.ckpt"


class Guard:
    """Compares validations, keeps the state of the best, and goes back to it.

    Args:
        loop: the run.
        tell: takes a line for the user.
    """

    def __init__(self, loop: Loop, tell: Callable[[str], None]) -> None:
        self.loop, self.tell = loop, tell
        self.best: float | None = None
        self.stale = 0

    @property
    def file(self) -> Path:
        """Where the state is kept."""
        return self.loop.directory / FILE

    def begin(self, score: float | None) -> None:
        """Note the AP of the weights with which the unlabelled images join."""
        if score is None or score != score:
            self.tell("No AP can be had on val, so nothing guards this run: the unlabelled images may make it worse.")
            return
        self.best = score
        self._keep()

    def judge(self, score: float | None) -> bool:
        """Take in a validation after that; return whether the run has gone back and must go on without the images."""
        if self.best is None or score is None:
            return False
        if score >= self.best:
            self.best, self.stale = score, 0
            self._keep()
            return False
        self.stale = self.stale + 1 if score < self.best - TOLERANCE else 0
        if self.stale < PATIENCE:
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
        why = f"AP on val has been below {shown_score(self.best)} for {PATIENCE} validations (now {shown_score(score)})"
        try:
            state = read_state(self.file)[1]
        except WeightsError:
            self.tell(f"{why}: the run goes on without the unlabelled images ({self.file} is gone, so from where it is).")
            return
        loop.network.load_state_dict(state["model"])
        loop.optimizer.load_state_dict(state["optimizer"])
        if loop.ema is not None:
            loop.ema.load_state_dict(state["ema"])
        self.tell(f"{why}: the run goes back to its best state, and on without the unlabelled images.")

    def finish(self) -> None:
        """Remove the state, which a run that is over needs no more."""
        if self.loop.main:
            self.file.unlink(missing_ok=True)

    def state_dict(self) -> dict[str, Any]:
        """All that resuming needs beside the file."""
        return {"best": self.best, "stale": self.stale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.best, self.stale = state["best"], int(state["stale"])
