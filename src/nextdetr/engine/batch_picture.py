"""Pictures of training batches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from nextdetr.boxes import cxcywh_to_xyxy
from nextdetr.inference.drawing import draw_detections
from nextdetr.inference.objects import Objects
from nextdetr.structures import Target

__all__ = ["draw_batch"]

#: Largest side of one image in the picture of a batch, pixels, and most images in it.
CELL, MOST_CELLS = 480, 16


def draw_batch(images: Tensor, targets: Sequence[Target], classes: Sequence[str]) -> Image.Image:
    """Draw a training batch, with boxes and class names, as one picture: what the model is trained on.

    Args:
        images: [B, 3, S, S] RGB, 0 to 1; the first 16 are drawn.
        targets: one per image, boxes cxcywh in 0..1.
        classes: class names by index.

    Returns:
        A grid of the images, each at most 480 pixels a side.
    """
    images = images[:MOST_CELLS].detach().float().cpu()
    count, height, width = images.shape[0], images.shape[2], images.shape[3]
    scale = min(1.0, CELL / max(height, width))
    cell_width, cell_height = max(1, round(width * scale)), max(1, round(height * scale))
    columns = max(1, math.ceil(math.sqrt(count)))
    rows = max(1, math.ceil(count / columns))
    gap = 4
    grid = Image.new("RGB", (columns * (cell_width + gap) - gap, rows * (cell_height + gap) - gap), (255, 255, 255))
    pixels = images.clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).numpy()  # [B, S, S, 3]
    for index, (cell, target) in enumerate(zip(pixels, targets, strict=False)):
        image = Image.fromarray(cell).resize((cell_width, cell_height), Image.Resampling.BILINEAR)
        extent = np.array([cell_width, cell_height, cell_width, cell_height])
        corners = cxcywh_to_xyxy(target.boxes.detach().float().cpu()).numpy().reshape(-1, 4) * extent  # [N, 4]
        found = Objects(corners, class_id=target.labels.cpu().numpy())
        row, column = divmod(index, columns)
        grid.paste(draw_detections(image, found, classes), (column * (cell_width + gap), row * (cell_height + gap)))
    return grid
