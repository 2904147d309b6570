"""Windows: rectangles of an image plane, what they show, and where the boxes end up.

Zoom-out, crops and mosaics all choose a window; the image is resized once, from the window to the result.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from nextdetr.boxes import xyxy_to_cxcywh
from nextdetr.structures import Target

__all__ = [
    "BoxArray", "LabelArray", "Window", "as_boxes", "happens", "intersect", "make_target", "on_canvas", "place_boxes",
    "render", "seeded", "target_area",
]  # fmt: skip

BoxArray = Tensor | NDArray[np.floating]
LabelArray = Tensor | NDArray[np.integer]

_THINNEST = 1e-3  # pixels; a thinner box is a line, and its IoU means nothing


class Window(NamedTuple):
    """A rectangle of the image plane in whole pixels; it may extend beyond the image."""

    left: int
    top: int
    right: int
    bottom: int


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator inside the block, and restore its state afterwards.

    torchvision draws from the global generator. ``torch.manual_seed`` would also seed every accelerator.
    """
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


def happens(probability: float) -> bool:
    """Draw from torch's global generator; call inside ``seeded``."""
    return bool(torch.rand(()) < probability)


def as_boxes(boxes: BoxArray) -> Tensor:
    """Return boxes as a float32 tensor [N, 4]."""
    return torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def on_canvas(boxes: Tensor, canvas: Window) -> tv_tensors.BoundingBoxes:
    """Boxes relative to the canvas, in a wrapper from which torchvision reads the canvas size."""
    moved = boxes - torch.tensor([canvas.left, canvas.top, canvas.left, canvas.top])
    extent = (canvas.bottom - canvas.top, canvas.right - canvas.left)
    return tv_tensors.BoundingBoxes(moved, format="XYXY", canvas_size=extent)


def intersect(first: Window, second: Window) -> Window:
    """Return the intersection of two overlapping windows."""
    return Window(
        max(first.left, second.left),
        max(first.top, second.top),
        min(first.right, second.right),
        min(first.bottom, second.bottom),
    )


def target_area(window: Window, seen: Window, size: int) -> tuple[int, int, int, int]:
    """Where ``seen`` lies in the result when ``window`` fills it: xyxy in whole pixels, at least one in each direction."""

    def span(low: int, high: int, start: int, end: int) -> tuple[int, int]:
        scale = size / (end - start)
        first = min(round((low - start) * scale), size - 1)
        return first, max(round((high - start) * scale), first + 1)

    x1, x2 = span(seen.left, seen.right, window.left, window.right)
    y1, y2 = span(seen.top, seen.bottom, window.top, window.bottom)
    return x1, y1, x2, y2


def render(image: Image.Image, seen: Window, area: tuple[int, int, int, int], size: int) -> Image.Image:
    """Resize the part ``seen`` of the image into ``area`` of a square filled with the mean colour of that part."""
    x1, y1, x2, y2 = area
    part = image.resize((x2 - x1, y2 - y1), Image.Resampling.BILINEAR, box=seen)
    if part.size == (size, size):
        return part
    mean = np.asarray(part).reshape(-1, 3).mean(axis=0)
    canvas = Image.new("RGB", (size, size), (round(mean[0]), round(mean[1]), round(mean[2])))
    canvas.paste(part, (x1, y1))
    return canvas


def place_boxes(boxes: Tensor, full: Window, seen: Window, area: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """Map boxes from the image to the result.

    Args:
        boxes: [N, 4] xyxy in pixels of the picture.
        full: the picture.
        seen: the visible part of it.
        area: position of that part in the result, xyxy in pixels.

    Returns:
        Boxes [N, 4] xyxy in pixels of the result, clipped to the visible part; and whether each is worth keeping, [N] bool.
    """
    low = torch.tensor([seen.left, seen.top], dtype=torch.float32)
    high = torch.tensor([seen.right, seen.bottom], dtype=torch.float32)
    start, end = torch.tensor(area[:2], dtype=torch.float32), torch.tensor(area[2:], dtype=torch.float32)
    corners = boxes.reshape(-1, 2, 2).clamp(min=low, max=high)  # [N, corner, xy]
    placed = ((corners - low) * ((end - start) / (high - low)) + start).reshape(-1, 4)
    sides = placed[:, 2:] - placed[:, :2]
    return placed, (sides >= 1).any(dim=-1) & (sides > _THINNEST).all(dim=-1)


def make_target(boxes: Tensor, labels: Tensor, size: int) -> Target:
    """Return a target from xyxy boxes [N, 4] in pixels of a square of side ``size``, and labels [N]."""
    return Target(boxes=xyxy_to_cxcywh(boxes) / size, labels=labels.to(torch.int64))
