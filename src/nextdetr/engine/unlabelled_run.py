"""What ``pretrain`` and ``graft`` have in common: runs on images without labels, whose only score is their loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nextdetr.data.check import summarize_problems
from nextdetr.data.raw import plural
from nextdetr.data.records import DetectionData
from nextdetr.data.unlabelled import find_unlabelled
from nextdetr.engine.curves import draw_loss
from nextdetr.engine.log import clock
from nextdetr.engine.loop import Loop
from nextdetr.errors import WeightsError
from nextdetr.models.convnextv2 import SIZES
from nextdetr.preprocess import Reading
from nextdetr.weights.licences import Origin, joined_teachers

__all__ = ["BACKBONES", "ScoredByLoss", "backbone_size", "find_images", "origin_state", "stored_origin", "tell_images"]

_PREFIX = "convnextv2-"
BACKBONES = ", ".join(_PREFIX + size for size in SIZES)  # for messages


def backbone_size(name: str) -> str | None:
    """Return the size in the name of a backbone (``atto`` in ``convnextv2-atto``); None for any other name."""
    size = name.removeprefix(_PREFIX)
    return size if name == _PREFIX + size and size in SIZES else None


def find_images(sources: Sequence[str], bits: int) -> DetectionData:
    """List the images of a run, with the way their files are read.

    Args:
        sources: folders and data sets.
        bits: significant bits of 16-bit greyscale images.

    Raises:
        DataError: see :func:`nextdetr.data.unlabelled.find_unlabelled`.
    """
    return replace(find_unlabelled(sources), reading=Reading(bits=bits))


def tell_images(data: DetectionData, purpose: str, tell: Callable[[str], None]) -> None:
    """Tell the user which images a run has, for what ``purpose``, and which of them cannot be used."""
    source = f", read as {data.recognised}" if data.recognised else ""
    tell(f"{plural(len(data.records), 'image')} {purpose}{source}")
    if data.problems:
        tell(summarize_problems(data.problems))


def origin_state(origin: Origin) -> dict[str, Any]:
    """Return the part of a state that names the origin of the initial weights."""
    return {"started_from": {"licence": origin.licence, "file": origin.file, **origin.taught}}


def stored_origin(state: Mapping[str, Any], file: Path) -> Origin | None:
    """Return the origin of the initial weights in the state that was read from ``file``; None without one.

    Raises:
        WeightsError: the state is damaged.
    """
    stated = state.get("started_from")
    if stated is None:
        return None
    if not isinstance(stated, dict):
        raise WeightsError(f"{file}: not a whole training state (started_from is not a mapping).")
    known = {str(key): str(value) for key, value in stated.items()}
    return Origin(known.get("licence", "none"), known.get("file", "none"), joined_teachers(known))


class ScoredByLoss(Loop):
    """A run without validation.

    Attributes:
        loss: mean loss of the last epoch; NaN before the first one ends.
    """

    score_names = ()
    loss: float = math.nan

    def score(self, number: int) -> Mapping[str, float | None]:
        """Keep the loss of epoch ``number``, the only score."""
        self.loss = self.cursor.sums["loss"] / self.cursor.counted
        return {}

    def finish(self, name: str, images: int, weights: Path, what: str = "weights") -> float:
        """Save, draw the loss, log the result, and tell the user where it is.

        Args:
            name: what was trained, for the title of the picture.
            images: number of images.
            weights: the file of the result.
            what: what it holds, for the user.

        Returns:
            Seconds of the run, over all sessions.
        """
        if self.unsaved:
            self.save()
        self.fabric.barrier()
        seconds = self.budget.seconds
        if self.main:
            title = f"{name}, {plural(images, 'image')}"
            draw_loss(self.directory / "metrics.csv", self.directory / "pictures" / "curves.png", title)
            self.logs.end(self.cursor.step, {"loss": self.loss}, weights)
        self.display.line(f"Done in {clock(seconds)}: loss {self.loss:.4f}; {what} in {weights}")
        return seconds
