"""RT-DETR's training loss: arXiv 2304.08069, section 4 and its public configurations.

Varifocal 1 (alpha 0.75, gamma 2), L1 5 and GIoU 2 on every decoder layer, on the encoder's proposals (all matched on their
own) and on the denoising queries (DINO, arXiv 2203.03605, section 3.3), whose targets are known. DEIM's matchability-aware
loss (arXiv 2412.04234, section 3.3) takes varifocal's place on request.

Where we differ: all layers are one set of tensor operations, the encoder's proposals one more layer among them; the number
of boxes that divides the sums is at least 1 over all processes together, not in each, so that N processes give the gradient
that one gives on the N-fold batch; and the terms are always the same ones, 0 where a batch has nothing for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from nextdetr.losses.matcher import HungarianMatcher, Matches
from nextdetr.losses.terms import matchability_loss, pair_terms, varifocal_loss
from nextdetr.structures import DenoisingOutput, DetectorOutput, Target, TrainingOutput

__all__ = ["LOSS_NAMES", "ClassLoss", "Criterion", "LayerLosses", "LossParts"]

ClassLoss = Literal["varifocal", "matchability"]
_CLASS_TERMS: dict[ClassLoss, str] = {"varifocal": "vfl", "matchability": "mal"}
LOSS_NAMES: tuple[str, ...] = tuple(
    f"loss_{term}{part}" for part in ("", "_aux", "_encoder", "_denoising") for term in ("vfl", "l1", "giou")
)
"""Keys of the criterion's result by default, in their order; the same for every batch."""

LayerLosses = dict[str, Tensor]
"""Weighted, normalised float32 losses of some layers by term, [L] each: ``vfl`` or ``mal``, ``l1`` and ``giou``."""


@dataclass(slots=True)
class LossParts:
    """The loss before summation over layers.

    Attributes:
        layers: [L] each, the decoder's layers, the last one last.
        encoder: [1] each, the encoder's proposals.
        denoising: [L] each, the denoising queries; [0] each when the batch has none.
    """

    layers: LayerLosses
    encoder: LayerLosses
    denoising: LayerLosses


@dataclass(slots=True)
class _FlatTargets:
    """The targets of all images in one row, to be indexed by (image, target of the image)."""

    boxes: Tensor  # [N, 4] cxcywh
    labels: Tensor  # [N]
    offsets: Tensor  # [B] position of each image's first target

    def __len__(self) -> int:
        return int(self.labels.shape[0])


class Criterion:
    """The whole training loss of one batch, in float32 whatever the precision of the model.

    Every prediction stays in the graph, also in a batch without a single box, so that each parameter gets a gradient. A
    prediction that is not finite makes the loss so.

    Args:
        num_classes: C, classes of the model.
        matcher: assigns queries to targets.
        vfl_weight: weight of the classes' loss, varifocal or matchability-aware.
        l1_weight: weight of the L1 distance.
        giou_weight: weight of the GIoU loss.
        alpha: weight of a negative in the varifocal loss.
        gamma: exponent of the varifocal loss.
        class_loss: ``matchability`` puts DEIM's loss, named ``mal`` in the result, in the place of varifocal, ``vfl``.
        matchability_gamma: exponent of the matchability-aware loss, in whose place alpha and gamma mean nothing.
    """

    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher,
        *,
        vfl_weight: float = 1.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        alpha: float = 0.75,
        gamma: float = 2.0,
        class_loss: ClassLoss = "varifocal",
        matchability_gamma: float = 1.5,
    ) -> None:
        self.num_classes = num_classes
        self.matcher = matcher
        self.vfl_weight = vfl_weight
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight
        self.alpha = alpha
        self.gamma = gamma
        self.class_loss = class_loss
        self.matchability_gamma = matchability_gamma

    def __call__(self, output: DetectorOutput, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Compute the loss, to be summed over the values.

        With torch.distributed initialised this is a collective call: every process has to make it, once per batch.

        Args:
            output: of a model in training mode that was given the targets.
            targets: one per image, on the device of the output.

        Returns:
            Weighted float32 scalars, by default under the keys of ``LOSS_NAMES``: the last decoder layer, then ``_aux``, the
            sum over the earlier layers, ``_encoder``, the encoder's proposals, and ``_denoising``, the sum over all layers.

        Raises:
            ValueError: the output has nothing to supervise, or does not fit the targets or the number of classes.
        """
        parts = self.per_layer(output, targets)
        summands = {
            "": _of_layers(parts.layers, slice(-1, None)),
            "_aux": _of_layers(parts.layers, slice(None, -1)),
            "_encoder": parts.encoder,
            "_denoising": parts.denoising,
        }
        return {f"loss_{term}{part}": value.sum() for part, losses in summands.items() for term, value in losses.items()}

    def per_layer(self, output: DetectorOutput, targets: Sequence[Target]) -> LossParts:
        """Compute the same loss without the sums over layers; arguments and errors as of the call."""
        training = output.training
        if training is None:
            raise ValueError("The output has no training part: call the model in training mode, with the targets.")
        self._check(training, targets)
        with torch.autocast(training.layer_logits.device.type, enabled=False):
            flat = _flatten(targets, training.layer_logits.device)
            num_boxes = _count_boxes(len(flat), training.layer_logits.device)
            # The encoder's proposals are one more layer: matched and supervised in the same operations.
            logits = torch.cat((training.layer_logits.float(), training.encoder_logits.float()[None]))  # [L+1, B, Q, C]
            boxes = torch.cat((training.layer_boxes.float(), training.encoder_boxes.float()[None]))  # [L+1, B, Q, 4]
            matches = self.matcher.match(logits.detach(), boxes.detach(), targets)
            losses = self._supervise(logits, boxes, matches, flat, num_boxes)
            denoising = _of_layers(losses, slice(0))
            if training.denoising is not None:
                denoising = self._denoise(training.denoising, flat, num_boxes)
        encoder = _of_layers(losses, slice(-1, None))
        return LossParts(layers=_of_layers(losses, slice(-1)), encoder=encoder, denoising=denoising)

    def _denoise(self, denoising: DenoisingOutput, flat: _FlatTargets, num_boxes: float | Tensor) -> LayerLosses:
        plan, layers = denoising.plan, denoising.logits.shape[0]
        matches = Matches(
            torch.arange(layers, device=plan.batch_index.device).repeat_interleave(plan.batch_index.shape[0]),
            *(index.repeat(layers) for index in (plan.batch_index, plan.query_index, plan.target_index)),
        )
        # Each target stands in every group once.
        return self._supervise(
            denoising.logits.float(), denoising.boxes.float(), matches, flat, num_boxes * max(plan.groups, 1)
        )

    def _supervise(
        self, logits: Tensor, boxes: Tensor, matches: Matches, flat: _FlatTargets, num_boxes: float | Tensor
    ) -> LayerLosses:
        """Losses per layer of [L, B, Q, C] logits and [L, B, Q, 4] boxes, given which queries are positives of what."""
        layers = logits.shape[0]
        places = (matches.layer_index, matches.batch_index, matches.query_index)
        rows = flat.offsets[matches.batch_index] + matches.target_index  # [M]
        pairs = pair_terms(boxes[places], flat.boxes[rows])  # [M] each
        classes = self._class_loss(logits, (*places, flat.labels[rows]), pairs.iou)  # [L, B, Q, C]
        # Zero, unless some value is not finite: a NaN in an unmatched box would otherwise pass unseen into the gradients.
        bad_logits, bad_boxes = (values.detach().flatten(1).sum(1) * 0 for values in (logits, boxes))  # [L] each
        shape = (layers, len(matches) // layers)  # every layer has the same number of pairs
        return {
            _CLASS_TERMS[self.class_loss]: classes.flatten(1).sum(1) * (self.vfl_weight / num_boxes) + bad_logits,
            "l1": pairs.l1.view(shape).sum(1) * (self.l1_weight / num_boxes) + bad_boxes,
            "giou": pairs.giou.view(shape).sum(1) * (self.giou_weight / num_boxes),
        }

    def _class_loss(self, logits: Tensor, positives: tuple[Tensor, ...], quality: Tensor) -> Tensor:
        if self.class_loss == "matchability":
            return matchability_loss(logits, positives, quality, self.matchability_gamma)
        return varifocal_loss(logits, positives, quality, self.alpha, self.gamma)

    def _check(self, training: TrainingOutput, targets: Sequence[Target]) -> None:
        batch, classes = training.encoder_logits.shape[0], training.encoder_logits.shape[-1]
        if classes != self.num_classes:
            raise ValueError(
                f"The model predicts {classes} classes, but the loss was made for {self.num_classes}; "
                "make both for the same data."
            )
        if batch != len(targets):
            raise ValueError(
                f"The model's output has {batch} images, but there are {len(targets)} targets; give one per image."
            )


def _of_layers(losses: LayerLosses, layers: slice) -> LayerLosses:
    return {term: values[layers] for term, values in losses.items()}


def _flatten(targets: Sequence[Target], device: torch.device) -> _FlatTargets:
    counts = torch.tensor([len(target) for target in targets])
    return _FlatTargets(
        boxes=torch.cat([target.boxes for target in targets]).to(device, torch.float32),
        labels=torch.cat([target.labels for target in targets]).to(device),
        offsets=(counts.cumsum(0) - counts).to(device),
    )


def _count_boxes(count: int, device: torch.device) -> float | Tensor:
    """Mean number of boxes of a process, the sum of all being at least 1.

    DDP averages the gradients of the processes, so that dividing each by the mean divides their sum by the total.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return float(max(count, 1))
    total = torch.tensor(float(count), device=device)
    dist.all_reduce(total)
    return total.clamp(min=1) / dist.get_world_size()
