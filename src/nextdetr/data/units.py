"""Boxes in the wrong unit or form for their format: if a whole split has them, it is refused rather than trained on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nextdetr.data.raw import RawSplit, plural
from nextdetr.data.records import Problem
from nextdetr.errors import DataError

__all__ = ["are_fractions", "check_units", "doubt_corners"]

_FAR = 2.0  # sides of the image; no tool writes fractions beyond that
_STICKING_OUT = 0.2  # fraction of boxes beyond their images from which their form is doubted
_ROUNDING = 1.0  # pixels
_ENOUGH = 10  # boxes


def are_fractions(boxes: NDArray[np.float64]) -> bool:
    """Whether xyxy boxes [M, 4] in pixels are really fractions of the image: all from 0 to 1, and not all integers."""
    boxes = boxes[np.isfinite(boxes).all(axis=1)]
    return bool(len(boxes)) and bool((boxes >= 0).all() and (boxes <= 1).all() and (boxes % 1 > 0).any())


def check_units(raw: RawSplit) -> None:
    """Refuse fractions in place of pixels, and pixels in place of fractions.

    Raises:
        DataError: all boxes in pixels are fractions, or more than half of those in fractions are pixels.
    """
    if not raw.fractions:
        if are_fractions(raw.boxes):
            raise DataError(
                f"{raw.source}: all of its {plural(len(raw.boxes), 'box')} lie between 0 and 1{_such_as(raw, 0)}: these "
                "are fractions of the image's size, and pixels belong. Multiply them by the width and height of the images."
            )
        return
    with np.errstate(invalid="ignore"):
        far = (np.abs(raw.boxes) > _FAR).any(axis=1)
    if 2 * int(far.sum()) > len(raw.boxes):
        raise DataError(
            f"{raw.source}: {int(far.sum()):,} of {plural(len(raw.boxes), 'box')} are far larger than 1"
            f"{_such_as(raw, int(np.argmax(far)))}: these are pixels, and fractions of the image's sides belong. Divide "
            "them by the width and height of the images."
        )


def _such_as(raw: RawSplit, row: int) -> str:
    file, where = raw.where(row)
    return f" (such as that of {', '.join(part for part in (file, where) if part)})"


def doubt_corners(raw: RawSplit, limits: NDArray[np.float64]) -> list[Problem]:
    """Return a problem if x, y, width, height may be two corners: many boxes extend beyond their images, but none would.

    Args:
        raw: the split; only called if its files give sizes (``raw.extents``).
        limits: [M, 4], width, height, width, height of each box's image; 0 if unusable.
    """
    usable = np.isfinite(raw.boxes).all(axis=1) & (limits[:, 0] > 0)
    if not raw.extents or int(usable.sum()) < _ENOUGH:
        return []
    first, ends, limits = raw.boxes[usable, :2], raw.boxes[usable, 2:], limits[usable, :2]
    out: NDArray[np.bool_] = np.any(ends - limits > _ROUNDING, axis=1)
    corners = ends - first  # as written: width and height, or the second corner
    inside = ((corners > first) & (corners <= limits + _ROUNDING)).all(axis=1)
    if np.mean(out) < _STICKING_OUT or not np.all(inside):
        return []
    message = (
        f"{int(out.sum()):,} of {plural(len(out), 'box')} reach out of their images, and none would if its last two "
        "numbers were the lower right corner; they are taken for width and height, as the format has it: look at some boxes"
    )
    return [Problem(raw.source, "", message, "corners or sizes")]
