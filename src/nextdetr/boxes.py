"""Box operations that torchvision.ops lacks; defined only here.

Formats: cxcywh and xyxy, both as floats; units are the caller's (fractions or pixels).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["cxcywh_to_xyxy", "inverse_sigmoid", "paired_iou_and_giou", "xyxy_to_cxcywh"]


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert [..., 4] (cx, cy, w, h) to (x1, y1, x2, y2)."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Convert [..., 4] (x1, y1, x2, y2) to (cx, cy, w, h)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of x, with x and 1 - x clamped to at least ``eps`` (Deformable DETR, arXiv 2010.04159, appendix A.4)."""
    x = x.clamp(0.0, 1.0)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def paired_iou_and_giou(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (arXiv 1902.09630) of boxes that broadcast against each other.

    Args:
        first: [..., 4] xyxy.
        second: [..., 4] xyxy, broadcastable to ``first``.

    Returns:
        IoU [...] in 0..1 and GIoU [...] in -1..1. A pair whose union is empty has IoU 0 and no NaN in value or gradient.
    """
    inner = (torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])).clamp(min=0)
    outer = (torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])).clamp(min=0)
    intersection = inner[..., 0] * inner[..., 1]
    union = _area(first) + _area(second) - intersection
    hull = outer[..., 0] * outer[..., 1]
    tiny = torch.finfo(union.dtype).tiny
    iou = intersection / union.clamp(min=tiny)
    return iou, iou - (hull - union) / hull.clamp(min=tiny)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
