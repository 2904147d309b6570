"""Labels of a report's pictures: which text goes where, in letters that the browser draws."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from nextdetr.inference.placement import LabelPlaces

__all__ = ["MOST_LABELS", "place_labels", "text_size"]

MOST_LABELS = 12  # of a picture; more would hide it
WIDE, NARROW, LINE = 1.05, 0.68, 1.25  # width of letters in a wide bold font, and height of a line, by the text's size
GAP = 0.1  # around a label, by the text's size


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
    gap = GAP * size
    places: list[tuple[float, float] | None] = [None] * len(texts)
    room, left = LabelPlaces(boxes, frame), MOST_LABELS
    for number in order:
        if left == 0:
            break
        width = size * sum(WIDE if unicodedata.east_asian_width(letter) in "WF" else NARROW for letter in texts[number])
        spot = room.place(number, (width + 2 * gap, size * LINE + 2 * gap))
        if spot is not None:
            places[number] = (round(spot[0] + gap, 1), round(spot[1] + gap + size, 1))
            left -= 1
    return places
