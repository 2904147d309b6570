"""Boxes of COCO masks (polygons and run lengths), for annotations that have a ``segmentation`` and no ``bbox``."""

from __future__ import annotations

import itertools
import math
from typing import Any

__all__ = ["box_of_mask"]

_MOST_BITS = 60  # of a run length; endless numbers would take forever


def box_of_mask(segmentation: Any) -> list[float] | None:
    """Return x, y, width, height in pixels of a mask; None if it is unreadable or empty.

    Args:
        segmentation: polygons [[x, y, x, y, …], …]; or {"size": [height, width], "counts": …} with alternating run lengths
            of pixels outside and inside, column by column, as a list or as a COCO string.
    """
    try:
        if isinstance(segmentation, dict):
            return _box_of_runs(segmentation["counts"], int(segmentation["size"][0]))
        if isinstance(segmentation, list) and segmentation:
            rings = segmentation if isinstance(segmentation[0], list) else [segmentation]
            return _box_of_points([float(value) for ring in rings for value in _even(ring)])
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        pass
    return None


def _even(ring: list[Any]) -> list[Any]:
    if len(ring) % 2:
        raise ValueError("a point without y")
    return ring


def _box_of_points(values: list[float]) -> list[float] | None:
    xs, ys = values[0::2], values[1::2]
    if len(xs) < 2 or not all(map(math.isfinite, values)):
        return None
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _box_of_runs(counts: Any, height: int) -> list[float] | None:
    runs = _decode(counts) if isinstance(counts, str) else [int(count) for count in counts]
    if height < 1 or any(run < 0 for run in runs):
        return None
    ends = list(itertools.accumulate(runs))
    inside = [(start, end) for start, end in zip(ends[0::2], ends[1::2], strict=False) if end > start]
    if not inside:
        return None
    left, right = inside[0][0] // height, (inside[-1][1] - 1) // height
    whole = any((end - 1) // height > start // height for start, end in inside)  # a run that continues in the next column
    top = 0 if whole else min(start % height for start, _ in inside)
    bottom = height - 1 if whole else max((end - 1) % height for _, end in inside)
    return [left, top, right - left + 1, bottom - top + 1]


def _decode(text: str) -> list[int]:
    """Decode a COCO string of runs: five bits per character from "0", low bits first.

    From the fourth run on, values are differences to the run before the last. The format is that of the COCO API
    (https://github.com/cocodataset/cocoapi, maskApi.c, BSD licence).
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > _MOST_BITS:
            raise ValueError("no run length")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs
