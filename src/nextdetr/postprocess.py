"""From the model's output to detections in pixels: top-k over queries and classes, no NMS.

RT-DETR, arXiv 2304.08069, section 4 (inference as in Deformable DETR, arXiv 2010.04159): a query may give several
detections, one a class, so the k best of all Q*C scores are kept rather than the best class of each query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nextdetr.boxes import cxcywh_to_xyxy
from nextdetr.structures import DetectorOutput

__all__ = ["Detected", "best_detections", "postprocess"]


@dataclass(frozen=True, slots=True)
class Detected:
    """What was detected in one image, best first; K may be 0.

    Attributes:
        boxes: [K, 4] float32 xyxy in pixels of the original image, clipped to it.
        scores: [K] float32, 0 to 1, descending.
        labels: [K] int64, class indices 0 to C-1.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return int(self.scores.shape[0])

    def to(self, device: torch.device | str) -> Detected:
        """Return the same detections on another device."""
        return Detected(self.boxes.to(device), self.scores.to(device), self.labels.to(device))


def postprocess(
    output: DetectorOutput,
    sizes: Tensor | Sequence[tuple[int, int]],
    *,
    max_detections: int = 300,
    classes: Sequence[int] | None = None,
) -> list[Detected]:
    """Turn a batch of outputs into detections, in float32 whatever the model's precision.

    Args:
        output: logits [B, Q, C] and boxes [B, Q, 4], cxcywh in 0..1.
        sizes: [B, 2] (height, width) of the original images in pixels.
        max_detections: most detections an image; never more than Q*C, or Q times the number of ``classes``.
        classes: consider only these class indices, before the best are chosen, so that a filter never costs detections.

    Returns:
        One entry per image, also where nothing was detected.

    Raises:
        ValueError: ``sizes`` does not fit the batch.
    """
    size = torch.as_tensor(sizes, dtype=torch.float32, device=output.logits.device).reshape(-1, 2)  # [B, 2]
    if size.shape[0] != output.logits.shape[0]:
        raise ValueError(f"{size.shape[0]} image sizes were given for a batch of {output.logits.shape[0]}.")
    boxes, scores, labels, found = best_detections(output, size, max_detections=max_detections, classes=classes)
    if not bool(found.all()):
        return [
            Detected(*(part[kept] for part in image)) for *image, kept in zip(boxes, scores, labels, found, strict=True)
        ]
    return [Detected(*image) for image in zip(boxes, scores, labels, strict=True)]


def best_detections(
    output: DetectorOutput, size: Tensor, *, max_detections: int = 300, classes: Sequence[int] | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``postprocess`` on whole tensors, as exported graphs have it.

    Args:
        output: logits [B, Q, C] and boxes [B, Q, 4], cxcywh in 0..1.
        size: [B, 2] (height, width) of the original images in pixels, float32.
        max_detections: see ``postprocess``.
        classes: see ``postprocess``.

    Returns:
        Boxes [B, K, 4] xyxy in pixels, scores [B, K], labels [B, K], and [B, K] bool, false for a logit of minus infinity,
        which stands for "no detection" where a batch holds images with fewer than K.
    """
    logits = output.logits.float()  # [B, Q, C]
    if classes is not None:
        kept = torch.as_tensor(list(classes), dtype=torch.int64, device=logits.device)
        logits = logits.index_select(2, kept)  # [B, Q, len(classes)]
    _, queries, number = logits.shape

    # The sigmoid saturates in float32 where logits still differ: rank by logit, then squash only what is kept.
    best, flat = logits.flatten(1).topk(min(max_detections, queries * number), dim=1)  # [B, K] each
    labels = flat % max(number, 1)
    if classes is not None:
        labels = kept[labels]
    query = torch.div(flat, max(number, 1), rounding_mode="floor").unsqueeze(-1).expand(-1, -1, 4)  # [B, K, 4]
    boxes = cxcywh_to_xyxy(output.boxes.float().gather(1, query))  # [B, K, 4] in 0..1
    extent = size.flip(1).repeat(1, 2).unsqueeze(1)  # [B, 1, 4] width, height, width, height
    return boxes.clamp(0, 1) * extent, best.sigmoid(), labels, best != -torch.inf
