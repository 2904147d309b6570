"""One-to-one assignment of queries to targets: DETR, arXiv 2005.12872, section 3.1, with RT-DETR's costs.

RT-DETR (arXiv 2304.08069) takes the class cost from Deformable DETR (arXiv 2010.04159): focal, 2, beside L1 5 and GIoU 2.

Differences: the costs of all layers and images are one tensor, moved to the CPU once, and a cost that is not finite becomes
a large one instead of the largest float, next to which the sums of the assignment would lose all valid costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nextdetr.boxes import cxcywh_to_xyxy, paired_iou_and_giou
from nextdetr.losses.terms import focal_class_cost
from nextdetr.structures import Target

__all__ = ["HungarianMatcher", "Matches"]

# Far above any sum of valid costs (boxes in 0..1 cost less than 60), and small enough to keep float64 sums exact.
_NOT_A_COST = 1e6


@dataclass(slots=True)
class Matches:
    """Pairs of a query and a target: four [M] int64 tensors.

    They are sorted by layer, then by image. Every layer has the same number of pairs, M / L: an image with N targets and Q
    queries has min(N, Q) pairs per layer.

    Attributes:
        layer_index: decoder layer, 0 to L-1.
        batch_index: image within the batch, 0 to B-1.
        query_index: query of that image, 0 to Q-1.
        target_index: target of that image, 0 to N-1.
    """

    layer_index: Tensor
    batch_index: Tensor
    query_index: Tensor
    target_index: Tensor

    def __len__(self) -> int:
        return int(self.layer_index.shape[0])


class HungarianMatcher:
    """Cheapest one-to-one assignment, for every layer and image separately.

    Args:
        class_weight: weight of the focal class cost.
        box_weight: weight of the L1 distance of the boxes.
        giou_weight: weight of the negative generalised IoU.
        alpha: focal loss's weight of a positive.
        gamma: focal loss's exponent.
    """

    def __init__(
        self,
        class_weight: float = 2.0,
        box_weight: float = 5.0,
        giou_weight: float = 2.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        if not (class_weight or box_weight or giou_weight):
            raise ValueError("The matcher's weights are all 0, so that every assignment costs the same; set at least one.")
        self.class_weight = class_weight
        self.box_weight = box_weight
        self.giou_weight = giou_weight
        self.alpha = alpha
        self.gamma = gamma

    @torch.no_grad()
    def match(self, logits: Tensor, boxes: Tensor, targets: Sequence[Target]) -> Matches:
        """Assign queries to targets.

        Computed in float32 whatever the inputs' type. Costs that are not finite never stop the assignment; such queries are
        used only if no other is left.

        Args:
            logits: [L, B, Q, C], any float type.
            boxes: [L, B, Q, 4] cxcywh, fractions of the image, any float type.
            targets: one per image, on the device of ``logits``.

        Returns:
            The pairs, on the device of ``logits``. If an image has more targets than queries, some targets have none.
        """
        counts = [len(target) for target in targets]
        if max(counts, default=0) == 0 or logits.shape[2] == 0:
            return _to_matches(np.empty((4, 0), dtype=np.int64), logits.device)
        return _to_matches(self.assign(self.cost(logits, boxes, targets), counts), logits.device)

    @staticmethod
    def assign(cost: Tensor, counts: Sequence[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        """Assign by cost.

        Args:
            cost: [L, B, Q, Tmax] finite, on any device.
            counts: targets of each image, at least one of them above 0.

        Returns:
            [4, M], in the order of the fields of ``Matches``.
        """
        values = cost.cpu().numpy()  # the only transfer
        pairs = []
        for layer in range(values.shape[0]):
            for image, count in enumerate(counts):
                if count:
                    queries, chosen = linear_sum_assignment(values[layer, image, :, :count])
                    pairs.append((np.full_like(queries, layer), np.full_like(queries, image), queries, chosen))
        return np.concatenate(pairs, axis=1, dtype=np.int64)

    @torch.no_grad()
    def cost(self, logits: Tensor, boxes: Tensor, targets: Sequence[Target]) -> Tensor:
        """Cost of every query for every target, finite float32.

        Args:
            logits: [L, B, Q, C], any float type.
            boxes: [L, B, Q, 4] cxcywh, fractions of the image, any float type.
            targets: one per image; at least one has a box.

        Returns:
            [L, B, Q, Tmax], Tmax the largest number of targets; columns beyond an image's own targets are meaningless.
        """
        with torch.autocast(logits.device.type, enabled=False):
            labels = pad_sequence([target.labels for target in targets], batch_first=True)  # [B, Tmax]
            wanted = pad_sequence([target.boxes.float() for target in targets], batch_first=True)  # [B, Tmax, 4]
            boxes = boxes.float()
            # Only the columns of the targets' classes are needed, so gather first: [L, B, Q, Tmax].
            chosen = logits.gather(-1, labels[None, :, None].expand(*logits.shape[:-1], -1)).float()
            cost = focal_class_cost(chosen, self.alpha, self.gamma).mul_(self.class_weight)
            distance = torch.cdist(boxes, wanted.expand(boxes.shape[0], -1, -1, -1), p=1.0)
            cost.add_(distance, alpha=self.box_weight)
            _, giou = paired_iou_and_giou(cxcywh_to_xyxy(boxes)[..., None, :], cxcywh_to_xyxy(wanted)[None, :, None])
            cost.sub_(giou, alpha=self.giou_weight)
            return cost.nan_to_num_(nan=_NOT_A_COST, posinf=_NOT_A_COST, neginf=_NOT_A_COST)


def _to_matches(pairs: np.ndarray[tuple[int, ...], np.dtype[np.int64]], device: torch.device) -> Matches:
    """[4, M] in the order of the fields of ``Matches``, in one transfer."""
    return Matches(*torch.from_numpy(pairs).to(device).unbind(0))
