"""Anchor boxes, from which a decoder's queries start: one for each token of its maps."""

from __future__ import annotations

import torch
from torch import Tensor

from nextdetr.layers.deformable import Shapes

__all__ = ["ANCHOR_SIZE", "anchors_and_validity", "make_anchors"]

ANCHOR_SIZE = 0.05  # on the finest map, as a fraction of the image; doubles from map to map
ANCHOR_MARGIN = 0.01  # an anchor with a coordinate closer than this to 0 or 1 is invalid
INVALID_LOGIT = 1e4  # fits into float16, and its sigmoid is exactly 1


def make_anchors(shapes: Shapes, device: torch.device | None = None) -> tuple[Tensor, Tensor | None]:
    """Build one anchor box per token, centred on its cell, 0.05 · 2^level of the image wide and high.

    Args:
        shapes: (height, width) of each map, finest first.
        device: device of the result.

    Returns:
        [S, 4] float32 cxcywh before the sigmoid, and [S, 1] bool where all four lie within 0.01 to 0.99; None if all do.
        All values of an invalid anchor are 10,000.
    """
    logits, valid = anchors_and_validity(shapes, device)
    # Compares with the shapes rather than the values, so that a tracer, which has no values, can do it too.
    all_valid = len(shapes) <= 5 and max(max(shape) for shape in shapes) < 0.5 / ANCHOR_MARGIN
    return logits, None if all_valid else valid


def anchors_and_validity(shapes: Shapes, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """``make_anchors`` whose second part is never None: nothing depends on the shapes, which may be symbols then."""
    anchors = []
    for level, (height, width) in enumerate(shapes):
        y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        size = torch.full((height, width), ANCHOR_SIZE * 2.0**level, dtype=torch.float32, device=device)
        anchors.append(torch.stack((x.expand(height, -1), y[:, None].expand(-1, width), size, size), dim=-1).flatten(0, 1))
    boxes = torch.cat(anchors)  # [S, 4]
    valid = ((boxes > ANCHOR_MARGIN) & (boxes < 1 - ANCHOR_MARGIN)).all(dim=-1, keepdim=True)
    return torch.where(valid, boxes.logit(), INVALID_LOGIT), valid
