"""Select the best detections over all queries and classes in exported graphs; ``postprocess`` does it in NumPy."""

from __future__ import annotations

import torch
from torch import Tensor

from nextdetr.boxes import cxcywh_to_xyxy
from nextdetr.structures import DetectorOutput

__all__ = ["best_detections"]


def best_detections(output: DetectorOutput, size: Tensor, *, max_detections: int = 300) -> tuple[Tensor, Tensor, Tensor]:
    """Select the best detections, in float32 whatever the model's precision.

    Args:
        output: logits [B, Q, C] and boxes [B, Q, 4], cxcywh in 0..1.
        size: [B, 2] (height, width) of the original images in pixels, float32.
        max_detections: maximum detections per image; never more than Q*C.

    Returns:
        Boxes [B, K, 4] xyxy in pixels, scores [B, K] and labels [B, K].
    """
    logits = output.logits.float()  # [B, Q, C]
    _, queries, number = logits.shape

    # The sigmoid saturates in float32 where logits still differ: rank by logit, then apply it to what is kept.
    best, flat = logits.flatten(1).topk(min(max_detections, queries * number), dim=1)  # [B, K] each
    labels = flat % number
    query = torch.div(flat, number, rounding_mode="floor").unsqueeze(-1).expand(-1, -1, 4)  # [B, K, 4]
    boxes = cxcywh_to_xyxy(output.boxes.float().gather(1, query))  # [B, K, 4] in 0..1
    extent = size.flip(1).repeat(1, 2).unsqueeze(1)  # [B, 1, 4] width, height, width, height
    return boxes.clamp(0, 1) * extent, best.sigmoid(), labels
