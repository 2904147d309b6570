"""Where the labels of a picture go: one rule for detections and for reports.

A label stands at its box or not at all. It covers no other label, hides little of any object, and no other object's centre.
Where an object fills a small picture, its label may hide more of it: it would have none.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["COVERED", "LabelPlaces"]

COVERED = 0.1  # of an object, at most
COVERED_FULL = 1 / 3  # of an object that fills its picture, as beside it there is no room: of small pictures only

Corners = tuple[float, float, float, float]


class LabelPlaces:
    """The places for labels in one picture; labels placed first are the most important.

    Args:
        boxes: [N, 4] xyxy of all objects drawn, pixels.
        frame: width and height of the picture, pixels.
    """

    def __init__(self, boxes: NDArray[np.floating], frame: tuple[int, int]) -> None:
        corners = np.sort(np.asarray(boxes, dtype=np.float64).reshape(-1, 2, 2), axis=1)  # upper left and lower right
        self.boxes, self.frame = corners.clip(0, frame).reshape(-1, 4), frame
        self._areas = np.maximum((self.boxes[:, 2:] - self.boxes[:, :2]).prod(axis=1), 1e-6)
        self._centres = (self.boxes[:, :2] + self.boxes[:, 2:]) / 2
        self._taken = np.zeros((0, 4))

    def place(self, index: int, extent: tuple[float, float]) -> Corners | None:
        """Find room for the label of a box, and keep it from later labels.

        Args:
            index: the box.
            extent: width and height of the label, pixels.

        Returns:
            The label's rectangle xyxy, pixels; None if there is no room.
        """
        spots = np.array(list(self._spots(index, extent))).reshape(-1, 4)
        found = next((spot for spot in spots if self._is_free(index, spot)), None)
        if found is None and all(_shared(spot, self.boxes[[index]])[0] > 0 for spot in spots):
            found = next((spot for spot in spots if self._is_free(index, spot, COVERED_FULL)), None)
        if found is None:
            return None
        self._taken = np.vstack((self._taken, found))
        left, upper, right, lower = found.tolist()
        return left, upper, right, lower

    def _spots(self, index: int, extent: tuple[float, float]) -> Iterator[Corners]:
        """Yield places inside the frame: above the box, in its upper corners, below it, or beside it."""
        (x1, y1, x2, y2), (width, height) = self.boxes[index].tolist(), extent
        most = self.frame[0] - width
        lefts = [min(max(left, 0.0), most) for left in (x1, x2 - width)]
        inside = [(x1, y1), (x2 - width, y1)] if width <= x2 - x1 else []
        places = [(lefts[0], y1 - height), *inside, (lefts[1], y1 - height)]
        places += [(lefts[0], y2), (lefts[1], y2), (x2, y1), (x1 - width, y1)]
        for left, top in places:
            if 0 <= left <= most and 0 <= top <= self.frame[1] - height:
                yield left, top, left + width, top + height

    def _is_free(self, index: int, spot: NDArray[np.float64], own: float = COVERED) -> bool:
        """Whether a label at ``spot``, [4] xyxy, would hide no other label, little of others and ``own`` of its box."""
        most = COVERED * self._areas
        most[index] = own * self._areas[index]
        if (_shared(spot, self._taken) > 0).any() or (_shared(spot, self.boxes) > most).any():
            return False
        hidden = ((self._centres > spot[:2]) & (self._centres < spot[2:])).all(axis=1)
        hidden[index] = False
        return not hidden.any()


def _shared(spot: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the area [N] that a rectangle shares with each of the others."""
    low, high = np.maximum(spot[:2], others[:, :2]), np.minimum(spot[2:], others[:, 2:])
    shared: NDArray[np.float64] = np.clip(high - low, 0, None).prod(axis=1)
    return shared
