"""Box operations on arrays, for results; ``boxes`` has the same on tensors, for training. No torch.

Formats: cxcywh and xyxy, both as floats; units are the caller's (fractions or pixels).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["batched_nms", "cxcywh_to_xyxy", "xyxy_to_cxcywh"]


def cxcywh_to_xyxy(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Convert [..., 4] (cx, cy, w, h) to (x1, y1, x2, y2)."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return np.concatenate((centre - half, centre + half), axis=-1)


def xyxy_to_cxcywh(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Convert [..., 4] (x1, y1, x2, y2) to (cx, cy, w, h)."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return np.concatenate(((low + high) / 2, high - low), axis=-1)


def batched_nms(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], labels: NDArray[np.int64], limit: float
) -> NDArray[np.int64]:
    """Greedy non-maximum suppression per class, as in torchvision.

    Args:
        boxes: [N, 4] xyxy.
        scores: [N].
        labels: [N], boxes of different labels never suppress each other.
        limit: IoU, 0 to 1, above which the box with the lower score is dropped.

    Returns:
        Indices of the kept boxes, highest score first; on a tie the earlier one first.
    """
    order = np.argsort(-scores, kind="stable")
    kept = [_nms(boxes, group, limit) for group in (order[labels[order] == label] for label in np.unique(labels))]
    if not kept:
        return np.zeros(0, np.int64)
    chosen = np.zeros(len(scores), bool)
    chosen[np.concatenate(kept)] = True
    return order[chosen[order]].astype(np.int64)


def _nms(boxes: NDArray[np.float32], order: NDArray[np.int64], limit: float) -> NDArray[np.int64]:
    """Indices of the kept boxes of one class; ``order`` sorts them by score."""
    ordered = boxes[order]
    areas = (ordered[:, 2] - ordered[:, 0]) * (ordered[:, 3] - ordered[:, 1])
    alive = np.ones(len(order), bool)
    for first in range(len(order) - 1):
        if not alive[first]:
            continue
        rest = np.flatnonzero(alive[first + 1 :]) + first + 1
        low = np.maximum(ordered[first, :2], ordered[rest, :2])
        high = np.minimum(ordered[first, 2:], ordered[rest, 2:])
        inner = np.clip(high - low, 0, None).prod(axis=1)
        union = areas[first] + areas[rest] - inner
        with np.errstate(invalid="ignore"):  # the IoU of two boxes without area is 0
            alive[rest[inner / union > limit]] = False
    return order[alive]
