"""Formulas of the individual cost and loss terms, without weights, sums or normalisers.

Papers: focal loss, arXiv 1708.02002, section 3.2 (as the matching cost of Deformable DETR, arXiv 2010.04159); varifocal
loss, arXiv 2008.13367, section 3.2; matchability-aware loss, DEIM, arXiv 2412.04234, section 3.3; L1 and generalised IoU
on pairs, DETR, arXiv 2005.12872, section 3.1.

All take float32; callers cast. Non-finite predictions give non-finite values, on purpose: the training loop must see them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nextdetr.boxes import cxcywh_to_xyxy, paired_iou_and_giou

__all__ = ["PairTerms", "focal_class_cost", "matchability_loss", "pair_terms", "varifocal_loss"]

_LOG_GUARD = 1e-8  # keeps the cost of a saturated probability finite


class PairTerms(NamedTuple):
    """Terms of predicted boxes and their targets, one value per pair.

    Attributes:
        l1: [...] sum over the four coordinates of the absolute differences, >= 0.
        giou: [...] 1 - GIoU, 0 to 2.
        iou: [...] IoU, 0 to 1, without gradient: the quality that classification should predict.
    """

    l1: Tensor
    giou: Tensor
    iou: Tensor


def focal_class_cost(logits: Tensor, alpha: float, gamma: float) -> Tensor:
    """Cost of matching a query to a target whose class has these logits: focal loss as a positive minus as a negative.

    Args:
        logits: [...] of the target's class.
        alpha: weight of a positive; 1 - alpha is that of a negative.
        gamma: focusing exponent.

    Returns:
        [...], lower for a more confident query; about -13.8 to 4.6 with alpha 0.25.
    """
    probability = logits.sigmoid()
    absent = 1 - probability
    as_positive = alpha * absent.pow(gamma) * -(probability + _LOG_GUARD).log()
    as_negative = (1 - alpha) * probability.pow(gamma) * -(absent + _LOG_GUARD).log()
    return as_positive - as_negative


def varifocal_loss(
    logits: Tensor, positives: tuple[Tensor, ...], quality: Tensor, alpha: float = 0.75, gamma: float = 2.0
) -> Tensor:
    """Varifocal loss of every logit (arXiv 2008.13367, equation 2).

    A positive has the quality q as its soft target and q as its weight; every other logit has target 0 and the weight
    alpha * p ** gamma. Weights carry no gradient, as in the authors' code and in RT-DETR.

    Args:
        logits: [..., C].
        positives: one [P] index tensor per axis of ``logits``; each position at most once.
        quality: [P] IoU of each positive with its target, 0 to 1, without gradient.
        alpha: weight of a negative.
        gamma: focusing exponent of a negative.

    Returns:
        [..., C], not reduced.
    """
    loss: Tensor = _SoftFocal.apply(logits, positives, quality, quality, alpha, gamma)
    return loss


def matchability_loss(logits: Tensor, positives: tuple[Tensor, ...], quality: Tensor, gamma: float = 1.5) -> Tensor:
    """Matchability-aware loss of every logit (DEIM, arXiv 2412.04234, section 3.3).

    A positive has the soft target q ** gamma and the full weight 1, whatever its quality q, so that matches of low quality
    still contribute (varifocal gives them the weight q, almost none); every other logit has target 0 and the weight p **
    gamma, without alpha. Weights carry no gradient.

    Args:
        logits: [..., C].
        positives: one [P] index tensor per axis of ``logits``; each position at most once.
        quality: [P] IoU of each positive with its target, 0 to 1, without gradient.
        gamma: exponent of both.

    Returns:
        [..., C], not reduced.
    """
    loss: Tensor = _SoftFocal.apply(logits, positives, quality.pow(gamma), torch.ones_like(quality), 1.0, gamma)
    return loss


def pair_terms(predicted: Tensor, target: Tensor) -> PairTerms:
    """L1, GIoU loss and IoU of predicted boxes and their targets.

    Args:
        predicted: [..., 4] cxcywh, fractions of the image.
        target: [..., 4] cxcywh, fractions of the image.
    """
    l1 = (predicted - target).abs().sum(-1)
    iou, giou = paired_iou_and_giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(target))
    return PairTerms(l1=l1, giou=1 - giou, iou=iou.detach())


class _SoftFocal(torch.autograd.Function):
    """Weighted binary cross-entropy with its gradient, in few passes over memory.

    Positives have a soft target and weight each; all other logits have target 0 and weight alpha * p ** gamma.

    torch's cross-entropy uses log1p, which on x86 CPUs takes 20 times as long as log: longer than the rest of the
    criterion. Here log(1 + exp(x)) = max(x, 0) - log(sigmoid(|x|)), to 1e-7 absolute, in place where possible.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        positives: tuple[Tensor, ...],
        wanted: Tensor,
        importance: Tensor,
        alpha: float,
        gamma: float,
    ) -> Tensor:
        probability = logits.sigmoid()  # [..., C]
        weight = probability.pow(gamma).mul_(alpha)
        weight[positives] = importance
        loss = logits.relu().sub_(logits.abs().sigmoid_().log_())
        loss[positives] -= wanted * logits[positives]
        probability[positives] -= wanted
        ctx.save_for_backward(probability.mul_(weight))
        return loss.mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (derivative,) = ctx.saved_tensors
        return derivative * gradients[0], None, None, None, None, None
