"""Images of a report: a small JPEG with the boxes as SVG on top, sharp at any size and coloured by the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nextdetr.data.records import ImageRecord
from nextdetr.errors import DataError
from nextdetr.files import path_text
from nextdetr.preprocess import Reading, load_image
from nextdetr.report.confusion import Pairs
from nextdetr.report.labels import place_labels, text_size

__all__ = ["Box", "Picture", "picture"]

SIDE = 560  # most pixels of a picture's longer side
QUALITY = 78
#: Maximum number of detections to draw per image; less confident ones would only hide the rest.
MOST = 100


@dataclass(frozen=True, slots=True)
class Box:
    """A box: its position in pixels of the picture, its ``kind`` (right, wrong, false or missed), and its label.

    ``label`` is the left end of the label's baseline, None if it is not drawn.
    """

    x: float
    y: float
    width: float
    height: float
    kind: str
    text: str
    label: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """An image with boxes.

    Attributes:
        name: of the file.
        caption: its errors, in a few words.
        width: of the picture in pixels.
        height: likewise.
        data: the JPEG as a data URL; empty if the file can no longer be read.
        boxes: the boxes, correct ones first, so that errors are drawn on top.
        text_size: of the labels, pixels of the picture.
    """

    name: str
    caption: str
    width: int
    height: int
    data: str
    boxes: list[Box]
    text_size: float


def picture(record: ImageRecord, pairs: Pairs, classes: Sequence[str], reading: Reading) -> Picture:
    """Return an image with its boxes and detections.

    Args:
        record: the image.
        pairs: its boxes and detections with their matches.
        classes: class names by index.
        reading: how the file is read.
    """
    data, size = "", (max(1, record.width), max(1, record.height))
    scale = min(1.0, SIDE / max(size))
    small = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    try:
        image = load_image(record.path, reading).convert("RGB").resize(small)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=QUALITY)
        data = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    except DataError:  # it was readable when scored, so the boxes are still worth showing
        pass
    boxes = sorted(_boxes(pairs, classes, scale), key=lambda box: ("right", "wrong", "false", "missed").index(box.kind))
    boxes = _labelled(boxes, small)
    counts = {kind: sum(box.kind == kind for box in boxes) for kind in ("missed", "false", "wrong", "right")}
    words = {"missed": "missed", "false": "false", "wrong": "of the wrong class", "right": "right"}
    caption = ", ".join(f"{counts[kind]} {words[kind]}" for kind in counts if counts[kind])
    return Picture(path_text(record.path.name), caption or "nothing in it", *small, data, boxes, text_size(small))


def _boxes(pairs: Pairs, classes: Sequence[str], scale: float) -> list[Box]:
    boxes = []
    right = pairs.right
    for row in np.argsort(-pairs.scores, kind="stable")[:MOST]:
        name, owner = classes[pairs.labels[row]], pairs.box_of[row]
        text = f"{name} {pairs.scores[row]:.2f}"
        kind = "right" if right[row] else "false" if owner < 0 else "wrong"
        if kind == "wrong":
            text += f" (is {classes[pairs.truth_labels[owner]]})"
        boxes.append(_box(pairs.found[row], scale, kind, text))
    missed = np.flatnonzero(pairs.missed)
    return boxes + [_box(pairs.truth[row], scale, "missed", classes[pairs.truth_labels[row]]) for row in missed]


def _labelled(boxes: list[Box], frame: tuple[int, int]) -> list[Box]:
    """Give errors a label where there is room: detections first, the most confident of a kind, then the largest missed."""
    found = [number for number, box in enumerate(boxes) if box.kind in ("wrong", "false")]
    missed = [number for number, box in enumerate(boxes) if box.kind == "missed"]
    missed.sort(key=lambda number: -boxes[number].width * boxes[number].height)
    corners = np.array([(box.x, box.y, box.x + box.width, box.y + box.height) for box in boxes]).reshape(-1, 4)
    places = place_labels(corners, [box.text for box in boxes], [*found, *missed], frame)
    return [replace(box, label=place) for box, place in zip(boxes, places, strict=True)]


def _box(corners: NDArray[np.float32], scale: float, kind: str, text: str) -> Box:
    x1, y1, x2, y2 = (round(float(value) * scale, 1) for value in corners)
    return Box(x1, y1, round(x2 - x1, 1), round(y2 - y1, 1), kind, text)
