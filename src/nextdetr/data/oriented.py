"""A split whose images are read turned or mirrored, with the boxes to match."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nextdetr.data.records import DetectionData, ImageRecord

__all__ = ["ROTATED_180", "TURNED_LEFT", "TURNED_RIGHT", "UPSIDE_DOWN", "oriented"]

# EXIF orientations. The names say what the image looks like afterwards.
ROTATED_180, UPSIDE_DOWN, TURNED_RIGHT, TURNED_LEFT = 3, 4, 6, 8


def oriented(data: DetectionData, orientation: int) -> DetectionData:
    """Return the split as it would be if every image was turned or mirrored; its files stay as they are.

    Args:
        data: a split of upright images.
        orientation: ``ROTATED_180``; ``UPSIDE_DOWN``, mirrored top to bottom; ``TURNED_RIGHT``, a quarter turn clockwise;
            or ``TURNED_LEFT``, a quarter turn counterclockwise.
    """
    records = [_record(record, orientation) for record in data.records]
    return replace(data, records=records, reading=replace(data.reading, orientation=orientation))


def _record(record: ImageRecord, orientation: int) -> ImageRecord:
    width, height = record.width, record.height
    if orientation in (TURNED_RIGHT, TURNED_LEFT):
        width, height = height, width
    boxes = _boxes(np.asarray(record.boxes, np.float32).reshape(-1, 4), record.width, record.height, orientation)
    return replace(record, width=width, height=height, boxes=boxes)


def _boxes(boxes: NDArray[np.float32], width: int, height: int, orientation: int) -> NDArray[np.float32]:
    """Turn boxes [N, 4], xyxy in pixels of an image of this size."""
    left, top, right, bottom = boxes.T
    turned = {
        ROTATED_180: (width - right, height - bottom, width - left, height - top),
        UPSIDE_DOWN: (left, height - bottom, right, height - top),
        TURNED_RIGHT: (height - bottom, left, height - top, right),
        TURNED_LEFT: (top, width - right, bottom, width - left),
    }[orientation]
    return np.stack(turned, axis=1).astype(np.float32)
