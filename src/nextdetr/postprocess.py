"""From a detector's output to detections in pixels: the best over all queries and classes, no NMS; NumPy, for all runtimes.

RT-DETR, arXiv 2304.08069, section 4 (inference as in Deformable DETR, arXiv 2010.04159): a query may give several
detections, one per class, so the k best of all Q*C scores are kept rather than the best class of each query. Exported
graphs contain the same (``export/best.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nextdetr.array_boxes import cxcywh_to_xyxy

__all__ = ["Detected", "Outputs", "postprocess"]


@dataclass(frozen=True, slots=True)
class Outputs:
    """Outputs of a detector for a batch, in any runtime.

    Attributes:
        logits: [B, Q, C] float32, one sigmoid per class, no background class; minus infinity is "no detection".
        boxes: [B, Q, 4] float32 cxcywh, 0 to 1.
    """

    logits: NDArray[np.float32]
    boxes: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.logits)


@dataclass(frozen=True, slots=True)
class Detected:
    """Detections in one image, best first; K may be 0.

    Attributes:
        boxes: [K, 4] float32 xyxy in pixels of the original image, clipped to it.
        scores: [K] float32, 0 to 1, descending.
        labels: [K] int64, class indices 0 to C-1.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scores)


def postprocess(
    output: Outputs,
    sizes: Sequence[tuple[int, int]] | NDArray[np.integer],
    *,
    max_detections: int = 300,
    classes: Sequence[int] | None = None,
) -> list[Detected]:
    """Convert a batch of outputs to detections.

    Args:
        output: outputs for B images.
        sizes: [B, 2] (height, width) of the original images in pixels.
        max_detections: maximum detections per image; never more than Q*C, or Q times the number of ``classes``.
        classes: consider only these class indices, before the best are selected, so that a filter never costs detections.

    Returns:
        One entry per image, also without detections. On a tie the earlier query, and class, comes first.

    Raises:
        ValueError: ``sizes`` does not fit the batch.
    """
    extents = np.asarray(sizes, np.float32).reshape(-1, 2)[:, [1, 0, 1, 0]]  # [B, 4] width, height, width, height
    if len(extents) != len(output):
        raise ValueError(f"{len(extents)} image sizes were given for a batch of {len(output)}.")
    kept = np.arange(output.logits.shape[2]) if classes is None else np.asarray(list(classes), np.int64)
    logits = output.logits if classes is None else output.logits[..., kept]
    return [
        _detected(scores, boxes, extent, kept, max_detections)
        for scores, boxes, extent in zip(logits, output.boxes, extents, strict=True)
    ]


def _detected(
    logits: NDArray[np.float32],
    boxes: NDArray[np.float32],
    extent: NDArray[np.float32],
    kept: NDArray[np.int64],
    most: int,
) -> Detected:
    """Detections of one image from logits [Q, len(kept)] of the classes ``kept`` and boxes [Q, 4]."""
    flat = logits.reshape(-1)
    # The sigmoid saturates in float32 where logits still differ: rank by logit, then apply it to what is kept.
    best = _largest(flat, most)
    best = best[flat[best] != -np.inf]
    query, column = np.divmod(best, max(1, logits.shape[1]))
    with np.errstate(over="ignore"):  # for a very low logit: the score is 0
        scores = 1 / (1 + np.exp(-flat[best]))
    return Detected(cxcywh_to_xyxy(boxes[query]).clip(0, 1) * extent, scores, kept[column])


def _largest(values: NDArray[np.float32], most: int) -> NDArray[np.int64]:
    """Indices of the largest values, in descending order; on a tie the earlier one. NaN counts as largest."""
    count = min(most, len(values))
    if count <= 0:
        return np.zeros(0, np.int64)
    ranked = np.where(np.isnan(values), np.inf, values)  # included, so that a diverged model is noticed
    least = np.partition(ranked, len(ranked) - count)[len(ranked) - count]
    candidates = np.flatnonzero(ranked >= least)
    return candidates[np.argsort(-ranked[candidates], kind="stable")][:count]
