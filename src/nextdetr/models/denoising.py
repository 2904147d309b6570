"""Contrastive denoising: additional training queries made from the targets, some of them deliberately wrong.

DINO, arXiv 2203.03605, section 3.3 (after DN-DETR, arXiv 2203.01305); RT-DETR, arXiv 2304.08069, uses it unchanged. A
"positive" query starts within half a box's size of its target and must recover it; a "negative" starts further away and
must predict "no object". Groups repeat this with different noise.

Differences: with C classes the class embedding has C rows, not C + 1; an empty slot of an image with fewer targets than the
largest of the batch holds the zero vector, as a padding row would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nextdetr.boxes import cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh
from nextdetr.structures import DenoisingPlan, Target

__all__ = ["DenoisingQueries", "contrastive_denoising", "denoising_mask"]


@dataclass(frozen=True, slots=True)
class DenoisingQueries:
    """The D denoising queries of a batch: group after group, each with M positives, then M negatives.

    Attributes:
        content: [B, D, hidden], embedded noisy labels; zero in empty slots.
        box_logits: [B, D, 4], noisy boxes (cxcywh, fractions of the image) before the sigmoid.
        plan: the positives and their targets.
        group_size: queries per group, 2·M, with M the largest number of targets of an image.
    """

    content: Tensor
    box_logits: Tensor
    plan: DenoisingPlan
    group_size: int


def contrastive_denoising(
    targets: Sequence[Target],
    num_classes: int,
    class_embedding: Callable[[Tensor], Tensor],
    *,
    num_denoising: int = 100,
    label_noise: float = 0.5,
    box_noise: float = 1.0,
    mirror: bool = False,
) -> DenoisingQueries | None:
    """Build the denoising queries of a batch; all randomness is from torch's global generator.

    Args:
        targets: one per image; boxes cxcywh in fractions of the image.
        num_classes: C; noisy labels are drawn from 0 to C-1.
        class_embedding: maps labels [B, D] (int64) to vectors [B, D, hidden].
        num_denoising: target number of positives per image. There are max(1, num_denoising // M) groups of 2·M queries.
        label_noise: half of this is the probability that a label is replaced by a random one (possibly the same).
        box_noise: 1.0 moves each side of a positive by up to half the box's size, of a negative by half to the full size.
        mirror: negatives whose sides have crossed, so that width or height is negative, get the absolute value, as in
            D-FINE's code; otherwise the minimum, 1e-5, as in RT-DETR's.

    Returns:
        The queries; None if ``num_denoising`` is 0 or no image has a target.
    """
    counts = [len(target) for target in targets]
    most = max(counts, default=0)
    if num_denoising <= 0 or most == 0:
        return None
    groups = max(1, num_denoising // most)
    device = targets[0].boxes.device
    filled = torch.arange(most) < torch.tensor(counts)[:, None]  # [B, M]
    repeats = 2 * groups
    labels = pad_sequence([target.labels for target in targets], batch_first=True).repeat(1, repeats)  # [B, D]
    boxes = pad_sequence([target.boxes for target in targets], batch_first=True).repeat(1, repeats, 1)  # [B, D, 4]

    if label_noise > 0:
        flipped = torch.rand(labels.shape, device=device) < 0.5 * label_noise
        labels = torch.where(flipped, torch.randint(0, num_classes, labels.shape, device=device), labels)
    if box_noise > 0:
        negative = torch.arange(labels.shape[1], device=device) // most % 2  # 0 in the positive half of each group  [D]
        boxes = _noisy(boxes, negative[None, :, None], box_noise)
        boxes = boxes.abs() if mirror else boxes

    slots = filled.to(device).repeat(1, repeats)
    content = class_embedding(labels) * slots[..., None]
    return DenoisingQueries(content, inverse_sigmoid(boxes), _plan(counts, groups, device), 2 * most)


def denoising_mask(denoising: int, group_size: int, matching: int, device: torch.device | None = None) -> Tensor:
    """Return which queries may attend to which in self-attention.

    Matching queries see only each other, or they could read the answers. A denoising query sees its own group and the
    matching queries, but not the other groups, which hold the same targets.

    Args:
        denoising: number of denoising queries, which come first.
        group_size: number of queries per group.
        matching: number of matching queries, which come last.
        device: device of the mask.

    Returns:
        [T, T] bool, T = denoising + matching; row q, column k is True if query q may attend to query k.
    """
    index = torch.arange(denoising + matching, device=device)
    group = torch.where(index < denoising, index // group_size, -1)
    return (group[:, None] == group) | (group == -1)


def _noisy(boxes: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Move every side of [B, D, 4] boxes by 0 to 1 (positives) or 1 to 2 (negatives) times half the size, in or out."""
    half = (boxes[..., 2:] * (0.5 * scale)).repeat(1, 1, 2)
    sign = torch.randint(0, 2, boxes.shape, device=boxes.device) * 2 - 1
    amount = torch.rand(boxes.shape, device=boxes.device) + negative
    # A side may cross the opposite one; the width is then negative and, unless mirrored, clamped by the inverse sigmoid.
    return xyxy_to_cxcywh((cxcywh_to_xyxy(boxes) + sign * amount * half).clamp(0.0, 1.0))


def _plan(counts: Sequence[int], groups: int, device: torch.device) -> DenoisingPlan:
    """Positives by image, then group, then target; built on the CPU, to avoid waiting for a GPU."""
    most = max(counts)
    filled = np.arange(most) < np.asarray(counts)[:, None]  # [B, M]
    image, group, target = np.broadcast_to(filled[:, None], (len(counts), groups, most)).nonzero()  # [P] each
    places = np.stack((image, group * (2 * most) + target, target)).astype(np.int64, copy=False)
    return DenoisingPlan(groups, *torch.from_numpy(places).to(device).unbind(0))  # one transfer
