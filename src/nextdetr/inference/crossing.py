"""Lines that tracked objects cross.

The geometry is that of supervision's ``LineZone``: an object counts when all four corners of its box, seen between the two
perpendiculars at the line's ends, have changed sides. Other than there, the side on which an object was last seen is kept
as long as its track lives: an object that was hidden while it crossed is counted when it is seen again.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["CrossingLine"]


class CrossingLine:
    """Counts the objects that cross one line.

    Args:
        start: x and y of its beginning, pixels.
        end: x and y of its end, another point.

    Attributes:
        entered: objects that have come to the left side, looking from start to end.
        left: objects that have gone to the right side.
    """

    def __init__(self, start: tuple[int, int], end: tuple[int, int]) -> None:
        self._start = np.array(start, np.float64)
        self._along = np.array(end, np.float64) - self._start
        self._sides: dict[int, bool] = {}  # by track: where it was last seen
        self.entered, self.left = 0, 0

    def see(self, track: int, box: ArrayLike) -> None:
        """Look at an object, which is in the box xyxy now; one that is on the line, or beyond its ends, says nothing."""
        x1, y1, x2, y2 = np.asarray(box, np.float64)
        corners = np.array([[x1, y1], [x2, y1], [x1, y2], [x2, y2]]) - self._start
        share = corners @ self._along
        if (share <= 0).any() or (share >= self._along @ self._along).any():
            return
        on_left = corners[:, 0] * self._along[1] - corners[:, 1] * self._along[0] > 0
        if on_left.any() != on_left.all():
            return
        side = bool(on_left[0])
        before, self._sides[track] = self._sides.get(track, side), side
        if side != before:
            self.entered += side
            self.left += not side

    def keep(self, tracks: Collection[int]) -> None:
        """Forget all other tracks."""
        self._sides = {track: side for track, side in self._sides.items() if track in tracks}
