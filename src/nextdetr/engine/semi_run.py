"""The unlabelled images in a run: when they join, the guard over them, and what is drawn and saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from nextdetr.data.unlabelled_views import UnlabelledSampler
from nextdetr.engine.guard import Guard
from nextdetr.engine.loop import Loop
from nextdetr.engine.semi import Semi, Views
from nextdetr.structures import Batch, Target

__all__ = ["SemiRun"]


class SemiRun:
    """Interface of a ``Trainer`` to its unlabelled images.

    Args:
        loop: the run.
        semi: their part of a step.
        score: scores the averaged weights on ``val`` into ``cursor.metrics`` and ``cursor.thresholds``; returns the AP.
        picture: draws images and targets into a named file.
        images: number of images of ``val``.
    """

    def __init__(
        self,
        loop: Loop,
        semi: Semi,
        score: Callable[[], float | None],
        picture: Callable[[Tensor, Sequence[Target], str], None],
        images: int,
    ) -> None:
        self.loop, self.semi, self._score, self._picture = loop, semi, score, picture
        self.guard = Guard(loop, loop.display.line, images)
        self.picture_due = True
        self.attach()

    def attach(self) -> None:
        """Tell the run's sampler when unlabelled images join; again after the run has got another loader."""
        if isinstance(self.loop.sampler, UnlabelledSampler):
            self.loop.sampler.joined = self.joined

    def joined(self, place: int) -> bool:
        """Whether the batch at image ``place`` of the epoch has unlabelled images; as for ``Trainer.strong``."""
        budget = self.loop.budget
        known = budget.minutes is None
        return self.semi.joins(budget.progress(self.loop.cursor.epoch, place) if known else self.loop.progress)

    def look(self, batch: Batch) -> tuple[Batch, Views | None]:
        """Split a batch and run the teacher on its unlabelled images; the guard starts when they first appear."""
        labelled, views = self.semi.split(batch)
        if views is None:
            return labelled, None
        if not self.semi.met:
            self.semi.met = True
            self.guard.begin(self._score())
        with self.loop.profile.part("teacher"):
            found = self.semi.look(views)
        if self.picture_due:
            self._picture(views.student, found, "pseudo_boxes.jpg")
            self.picture_due = False
        return labelled, views

    def validated(self, score: float | None) -> bool:
        """Record the AP of a validation, and drop the images if the guard says so; return whether the run went back.

        It then has the weights of its best state, and ``cursor`` their scores.
        """
        self.picture_due = True
        if not (self.semi.on and self.semi.met):
            return False
        self.semi.on = not self.guard.judge(score)
        return not self.semi.on

    def state_dict(self) -> dict[str, Any]:
        """State for resuming."""
        return {"semi": self.semi.state_dict(), "guard": self.guard.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.semi.load_state_dict(state["semi"])
        self.guard.load_state_dict(state["guard"])
        # A finished run has deleted the guard's state; if it continues, the guard begins again.
        if self.semi.met and not self.loop.fabric.broadcast(self.guard.file.is_file()):
            self.semi.met = False
