"""Assignment for the dense head: task-aligned, one target to many tokens.

TOOD, arXiv 2108.07755, section 3.2, as used by PP-YOLOE (arXiv 2203.16250) and therefore RT-DETRv3 (arXiv 2409.08475):
tokens within a target's box compete by score ** 1 * IoU ** 6, and the best 13 are its positives.

Difference: a token whose cell contains the box's centre also competes, so that a box smaller than a cell, which contains no
token's centre, still has one candidate on every map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nextdetr.boxes import cxcywh_to_xyxy, paired_iou_and_giou
from nextdetr.structures import DenseOutput, Target

__all__ = ["DensePairs", "task_aligned_pairs"]

TOP = 13
SCORE_POWER, IOU_POWER = 1.0, 6.0
_TINY = 1e-9


@dataclass(slots=True)
class DensePairs:
    """Tokens with a target; each token at most once. Four [P] tensors.

    Attributes:
        batch_index: image.
        token_index: token of that image.
        target_index: target of that image.
        quality: 0 to 1, target of the token's score: its alignment relative to its target's best, times the best IoU.
    """

    batch_index: Tensor
    token_index: Tensor
    target_index: Tensor
    quality: Tensor


@torch.no_grad()
def task_aligned_pairs(dense: DenseOutput, targets: Sequence[Target]) -> DensePairs:
    """Assign tokens to targets, in float32.

    Args:
        dense: the head's predictions.
        targets: one per image, on the device of the predictions.
    """
    found = []
    for image, target in enumerate(targets):
        if len(target):
            token, chosen, quality = _of_image(dense.logits[image].float(), dense.boxes[image].float(), dense.cells, target)
            found.append((torch.full_like(token, image), token, chosen, quality))
    if not found:
        none = torch.zeros(0, dtype=torch.int64, device=dense.logits.device)
        return DensePairs(none, none, none, none.float())
    return DensePairs(*(torch.cat(column) for column in zip(*found, strict=True)))


def _of_image(logits: Tensor, boxes: Tensor, cells: Tensor, target: Target) -> tuple[Tensor, Tensor, Tensor]:
    """Token, target and quality of every pair of an image with [S, C] logits, [S, 4] boxes and N targets, N above 0."""
    wanted = target.boxes.to(boxes.dtype)
    distance = (cells[:, None, :2] - wanted[None, :, :2]).abs_()  # [S, N, 2]
    reach = torch.maximum(cells[:, None, 2:], wanted[None, :, 2:]).mul_(0.5)
    token, chosen = (distance <= reach).all(dim=-1).nonzero().unbind(1)  # few of the S · N
    iou, _ = paired_iou_and_giou(cxcywh_to_xyxy(boxes[token]), cxcywh_to_xyxy(wanted[chosen]))
    score = logits[token, target.labels[chosen]].sigmoid()
    alignment = score.pow(SCORE_POWER) * iou.pow(IOU_POWER)

    # The best tokens of each target; -1 marks those outside, which only count if there are too few inside.
    ranked = alignment.new_full((len(boxes), len(wanted)), -1.0)
    ranked[token, chosen] = alignment
    best = ranked.topk(min(TOP, len(boxes)), dim=0).indices  # [TOP, N]
    among = torch.zeros_like(ranked, dtype=torch.bool).scatter_(0, best, True)[token, chosen]
    token, chosen, iou, alignment = (column[among] for column in (token, chosen, iou, alignment))

    # A token wanted by several targets goes to the one it overlaps most.
    overlap = torch.full_like(ranked, -1.0)
    overlap[token, chosen] = iou
    mine = overlap.argmax(dim=1)[token] == chosen
    token, chosen, iou, alignment = (column[mine] for column in (token, chosen, iou, alignment))

    zero = alignment.new_zeros(len(wanted))
    highest = zero.scatter_reduce(0, chosen, alignment, "amax")[chosen]
    return token, chosen, alignment / (highest + _TINY) * zero.scatter_reduce(0, chosen, iou, "amax")[chosen]
