"""Pictures of detections, drawn with Pillow: the one place for photographs, videos, the server and training batches.

supervision could draw them, but its import takes longer than a prediction, and its way of keeping labels apart pushes them
away from their boxes: in a crowded picture they hide what was found. Here a label stands at its box or not at all, the most
confident first (``placement``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from nextdetr.inference.fonts import lay_out, legible
from nextdetr.inference.objects import Found
from nextdetr.inference.placement import LabelPlaces
from nextdetr.preprocess import ImageSource, as_image

__all__ = ["draw_detections", "line_width", "text_size"]

#: Bright colours for the classes, most unlike each other first; classes beyond the list start over.
COLOURS = (
    *("#1f9bff", "#ff7f0e", "#00c853", "#ff2d95", "#ffd600", "#8c5bff", "#00d5d5", "#ff3b30", "#a4de02", "#c77dff"),
    *("#ffb3ba", "#00897b", "#b5651d", "#5c6bc0", "#f06292", "#cddc39"),
)

SMALLEST_TEXT = 11.0  # pixels, below which letters are hard to read
TINY_TEXT = 8.0  # pixels, in pictures of a hundred pixels, which are looked at enlarged


def draw_detections(image: ImageSource, detections: Found, classes: Sequence[str] | None = None) -> Image.Image:
    """Draw boxes with class names, tracks' numbers and confidences on a copy of the image, in one colour per class.

    Where boxes crowd, a label shrinks to its confidence or is left out; every box is drawn. A class whose name no installed
    font can draw is called by its number, with a warning.

    Args:
        image: what the detections are of; anything that ``as_image`` takes.
        detections: boxes xyxy in pixels of the image; names come from ``data["class_name"]``, or else from ``classes``.
        classes: class names by index.

    Returns:
        A picture of the image's size.
    """
    picture = as_image(image).copy()
    picture.info.clear()  # comments, orientation and the like are of the photograph
    number = len(detections)
    if number == 0:
        return picture
    labels = np.zeros(number, np.int64) if detections.class_id is None else detections.class_id.astype(np.int64)
    names = detections.data.get("class_name")
    if names is None:
        names = [classes[label] if classes is not None and label < len(classes) else str(label) for label in labels]
    if detections.tracker_id is not None:  # -1 is no track yet
        numbers = (f" {number}" if number >= 0 else "" for number in detections.tracker_id)
        names = [f"{name}{number}" for name, number in zip(names, numbers, strict=True)]
    names = [legible(str(name), f"class {label}") for name, label in zip(names, labels, strict=True)]
    variants: list[tuple[str, ...]] = [(name,) for name in names]
    order = np.arange(number)
    if detections.confidence is not None:
        scores = detections.confidence
        variants = [(f"{name} {score:.2f}", f"{score:.2f}") for name, score in zip(names, scores, strict=True)]
        order = np.argsort(-scores, kind="stable")
    boxes = np.asarray(detections.xyxy, dtype=np.float64).reshape(-1, 4)
    _draw_boxes(picture, boxes, labels)
    _draw_labels(picture, boxes, labels, variants, order)
    return picture


def line_width(size: tuple[int, int]) -> float:
    """Return the width of lines that suits a picture of this width and height, pixels."""
    side = min(size)
    return max(1.0, math.sqrt(side) / 10, side / 350)


def text_size(size: tuple[int, int]) -> float:
    """Return the size of text that suits a picture of this width and height, pixels."""
    side = min(size)
    return max(side * 0.026, min(SMALLEST_TEXT, max(TINY_TEXT, side / 10)))


def _draw_boxes(picture: Image.Image, boxes: NDArray[np.float64], labels: NDArray[np.int64]) -> None:
    """Lines as thick as the picture allows, thinner around small objects; thick ones above thin ones.

    As OpenCV draws them: centred on the edges of the box, with round corners outside, and an odd number of pixels wide.
    """
    corners = np.sort(boxes.reshape(-1, 2, 2), axis=1)  # upper left and lower right, [N, 2, 2]
    sides = (corners[:, 1] - corners[:, 0]).min(axis=1)
    thickness = np.clip(np.rint(np.minimum(line_width(picture.size), sides / 12)), 1, None).astype(int)
    reach = np.where(thickness > 1, (thickness + 1) // 2, 0)  # pixels on either side of the edge
    outer = corners.clip(0, np.array(picture.size) - 1).astype(int) + reach[:, None, None] * np.array([[-1], [1]])
    draw = ImageDraw.Draw(picture)
    for index in np.argsort(thickness, kind="stable"):
        edges, radius, colour = outer[index].ravel().tolist(), int(reach[index]), COLOURS[labels[index] % len(COLOURS)]
        if radius:
            draw.rounded_rectangle(edges, radius, outline=colour, width=2 * radius + 1)
        else:
            draw.rectangle(edges, outline=colour)


def _draw_labels(
    picture: Image.Image,
    boxes: NDArray[np.float64],
    labels: NDArray[np.int64],
    variants: Sequence[tuple[str, ...]],
    order: NDArray[np.int64],
) -> None:
    """Place labels in ``order``, each in the longest of its ``variants`` that finds room at its box."""
    size = _font_size(picture, boxes)
    padding = max(2, size // 5)
    draw = ImageDraw.Draw(picture)
    places = LabelPlaces(boxes, picture.size)
    for index in order:
        colour = COLOURS[labels[index] % len(COLOURS)]
        for text in variants[index]:
            line = lay_out(text, size)
            if line.width > max(picture.width / 2, boxes[index, 2] - boxes[index, 0]) and text != variants[index][-1]:
                continue  # would hide most of a small picture
            extent = (line.width + 2 * padding, float(line.bottom - line.top + padding))
            spot = places.place(index, extent)
            if spot is None:
                continue
            draw.rectangle(spot, fill=colour)
            line.draw(draw, spot[0] + padding, spot[1] + padding / 2 - line.top, _ink(colour))
            break


def _font_size(picture: Image.Image, boxes: NDArray[np.float64]) -> int:
    """In proportion to the picture, smaller where the objects are small, never illegible."""
    height = float(np.median(boxes[:, 3] - boxes[:, 1]))
    size = text_size(picture.size)
    return int(max(min(SMALLEST_TEXT, size), min(size, height / 2)))


def _ink(colour: str) -> str:
    """Black or white, whichever is legible on ``colour`` (luma of ITU-R BT.601)."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#ffffff"
