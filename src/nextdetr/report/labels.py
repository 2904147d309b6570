"""Where the labels of a picture go: to their box, and only where they hide neither an object nor another label."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_LABELS", "place_labels", "text_size"]

MOST_LABELS = 12  # of a picture; more would hide it
COVERED = 0.1  # of an object, at most
WIDE, NARROW, LINE = 1.05, 0.68, 1.25  # width of letters in a wide bold font, and height of a line, by the text's size


def text_size(frame: tuple[int, int]) -> float:
    """Return the size of labels in a picture of this width and height, in its pixels; it is shown some 350 pixels wide."""
    return round(max(frame) * 15 / 560, 2)


def place_labels(
    boxes: NDArray[np.floating], texts: Sequence[str], order: Iterable[int], frame: tuple[int, int]
) -> list[tuple[float, float] | None]:
    """Find room for labels, one after the other.

    Args:
        boxes: [N, 4] xyxy of all objects drawn, pixels.
        texts: [N] their labels.
        order: numbers of those that get a label, the most important first.
        frame: width and height of the picture.

    Returns:
        [N] left end of the baseline, None for a box without a label.
    """
    size = text_size(frame)
    places: list[tuple[float, float] | None] = [None] * len(texts)
    taken = np.zeros((0, 4))
    areas = np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), 1e-6)
    for number in order:
        if len(taken) == MOST_LABELS:
            break
        extent = (size * sum(WIDE if unicodedata.east_asian_width(letter) in "WF" else NARROW for letter in texts[number]),
                  size * LINE)  # fmt: skip
        for spot in _spots(boxes[number], extent, frame, size / 5):
            if _overlaps(spot, taken).max(initial=0) == 0 and (_overlaps(spot, boxes) / areas).max() <= COVERED:
                taken = np.vstack((taken, spot))
                places[number] = (round(float(spot[0]), 1), round(float(spot[1]) + size, 1))
                break
    return places


def _spots(
    box: NDArray[np.floating], extent: tuple[float, float], frame: tuple[int, int], gap: float
) -> list[NDArray[np.float64]]:
    """Return places for a label inside the frame: above its box, below it, beside it, or in its upper corner."""
    x1, y1, x2, y2 = (float(value) for value in box)
    width, height = extent
    most = frame[0] - width
    rows = [min(max(left, 0.0), most) for left in (x1, x2 - width)]
    corners = [(left, top) for top in (y1 - height - gap, y2 + gap) for left in rows]
    corners += [(x2 + gap, y1), (x1 - width - gap, y1), (x1 + gap, y1 + gap)]
    return [
        np.array((left, top, left + width, top + height))
        for left, top in corners
        if 0 <= left <= most and 0 <= top <= frame[1] - height
    ]


def _overlaps(spot: NDArray[np.float64], others: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the area [N] that a rectangle shares with each of the others."""
    low, high = np.maximum(spot[:2], others[:, :2]), np.minimum(spot[2:], others[:, 2:])
    shared: NDArray[np.float64] = np.clip(high - low, 0, None).prod(axis=1)
    return shared
