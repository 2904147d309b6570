"""RT-DETR's training loss: arXiv 2304.08069, section 4 and its public configurations.

Varifocal 1 (alpha 0.75, gamma 2), L1 5 and GIoU 2 on every decoder layer, on the encoder's proposals (each matched
separately) and on the denoising queries (DINO, arXiv 2203.03605, section 3.3), whose targets are known. DEIM's
matchability-aware loss (arXiv 2412.04234, section 3.3) optionally replaces varifocal. For a D-FINE decoder (arXiv
2410.13842, section 4.2), the first layer's plain boxes count as one more layer, all layers train the boxes of the same
united pairs, and the edges' distributions have two losses of their own, FGL 0.15 and DDF 1.5. A dense head (RT-DETRv3,
arXiv 2409.08475) adds the same three terms over its one-to-many pairs, each weighted with its quality.

Differences: all layers are one set of tensor operations, including the encoder's proposals as one more layer; the number of
boxes that normalises the sums is at least 1 over all processes together, not in each, so that N processes give the gradient
of one with the N-fold batch; and the terms are always the same, 0 if a batch has nothing for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from nextdetr.losses.dense import DensePairs, task_aligned_pairs
from nextdetr.losses.edges import distillation_loss, fine_grained_loss, united
from nextdetr.losses.matcher import HungarianMatcher, Matches
from nextdetr.losses.processes import mean_over_processes
from nextdetr.losses.pseudo import PseudoTarget, class_factors
from nextdetr.losses.terms import matchability_loss, pair_terms, varifocal_loss
from nextdetr.structures import DenoisingOutput, DenseOutput, DetectorOutput, EdgeOutput, Target, TrainingOutput

__all__ = ["LOSS_NAMES", "ClassLoss", "Criterion", "LayerLosses", "LossParts"]

ClassLoss = Literal["varifocal", "matchability"]
_CLASS_TERMS: dict[ClassLoss, str] = {"varifocal": "vfl", "matchability": "mal"}
LOSS_NAMES: tuple[str, ...] = tuple(
    f"loss_{term}{part}" for part in ("", "_aux", "_encoder", "_denoising") for term in ("vfl", "l1", "giou")
)
"""Default keys of the criterion's result, in order; the same for every batch."""

LayerLosses = dict[str, Tensor]
"""Weighted, normalised float32 losses by term, [L] each for L layers: ``vfl`` or ``mal``, ``l1`` and ``giou``.

For a D-FINE decoder also ``fgl`` and ``ddf``; the latter is 0 on the last layer, the teacher.
"""


@dataclass(slots=True)
class LossParts:
    """The loss before summation over layers.

    Attributes:
        layers: [L] each, the decoder layers, the last one last.
        encoder: [1] each, the encoder's proposals.
        denoising: [L] each, the denoising queries; [0] each if the batch has none.
        initial: the first layer's plain boxes of a D-FINE decoder: [1] each, or [2] with those of the denoising queries;
            empty for other decoders.
        dense: [1] each, the dense head; empty without one.
    """

    layers: LayerLosses
    encoder: LayerLosses
    denoising: LayerLosses
    initial: LayerLosses = field(default_factory=dict)
    dense: LayerLosses = field(default_factory=dict)


@dataclass(slots=True)
class _FlatTargets:
    """The targets of all images in one list, to be indexed by (image, target of the image)."""

    boxes: Tensor  # [N, 4] cxcywh
    labels: Tensor  # [N]
    offsets: Tensor  # [B] position of each image's first target
    most: int  # largest number of targets of an image
    weights: Tensor | None = None  # [N] of a teacher's boxes
    doubtful: Sequence[Tensor] = ()  # by image, boxes [M, 4] of which a teacher is unsure
    told: Tensor | None = None  # [C] bool, classes that a teacher knows; None for all

    def weighted(self, values: Tensor, rows: Tensor) -> Tensor:
        """Scale values [..., P] by the weights of the targets ``rows`` [P]."""
        return values if self.weights is None else values * self.weights[rows]

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def rows(self, matches: Matches) -> Tensor:
        """Return the target index of each pair, [M]."""
        return self.offsets[matches.batch_index] + matches.target_index


@dataclass(slots=True)
class _Counts:
    """Normalisers of the sums, means over the processes; scalars.

    Those that are divisors are at least 1 over all processes together.
    """

    targets: Tensor
    pairs: Tensor  # united pairs of a D-FINE decoder, otherwise the targets again
    matching: tuple[Tensor, Tensor]  # matching queries in a united pair, and outside
    denoising: tuple[Tensor, Tensor]  # denoising queries that are positives, and others
    dense: Tensor  # sum of the dense pairs' qualities


class Criterion:
    """The whole training loss of one batch, in float32 whatever the precision of the model.

    Every prediction stays in the graph, even in a batch without boxes, so that each parameter gets a gradient. Predictions
    that are not finite make the loss so.

    Args:
        num_classes: C, classes of the model.
        matcher: assigns queries to targets.
        vfl_weight: weight of the classification loss, varifocal or matchability-aware.
        l1_weight: weight of the L1 distance.
        giou_weight: weight of the GIoU loss.
        alpha: weight of negatives in the varifocal loss.
        gamma: exponent of the varifocal loss.
        class_loss: ``matchability`` replaces varifocal, ``vfl``, by DEIM's loss, named ``mal`` in the result.
        matchability_gamma: exponent of the matchability-aware loss, which ignores alpha and gamma.
        fine_grained_weight: weight of a D-FINE decoder's FGL; 0 disables it.
        distillation_weight: weight of a D-FINE decoder's DDF; 0 disables it.
        dense_weight: factor of all losses of a dense head.
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
        fine_grained_weight: float = 0.15,
        distillation_weight: float = 1.5,
        dense_weight: float = 1.0,
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
        self.fine_grained_weight = fine_grained_weight
        self.distillation_weight = distillation_weight
        self.dense_weight = dense_weight

    def __call__(
        self, output: DetectorOutput, targets: Sequence[Target], *, told: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compute the loss terms; the loss is their sum.

        With torch.distributed initialised this is a collective call: every process must make it, once per batch.

        Args:
            output: output of a model in training mode that was given the targets.
            targets: one per image, on the device of the output; all labelled, or all ``PseudoTarget``.
            told: with ``PseudoTarget``, [C] bool: classes that their teacher knows. The others have no classification loss,
                as their objects have no boxes. None for all.

        Returns:
            Weighted float32 scalars, by default under the keys of ``LOSS_NAMES``: the last decoder layer, then ``_aux``,
            the sum over the earlier layers, ``_encoder``, the encoder's proposals, and ``_denoising``, the sum over all
            layers; of a D-FINE decoder also ``loss_fgl…``, ``loss_ddf…`` and ``_initial``, its first plain boxes;
            with a dense head ``_dense``, whose class term is always ``vfl``.

        Raises:
            ValueError: the output has nothing to supervise, or does not match the targets or the number of classes.
        """
        parts = self.per_layer(output, targets, told=told)
        last = _of_layers(parts.layers, slice(-1, None))
        last.pop("ddf", None)  # the last layer is the teacher
        summands = {
            "": last,
            "_aux": _of_layers(parts.layers, slice(None, -1)),
            "_encoder": parts.encoder,
            "_denoising": parts.denoising,
            "_initial": parts.initial,
            "_dense": parts.dense,
        }
        return {f"loss_{term}{part}": value.sum() for part, losses in summands.items() for term, value in losses.items()}

    def per_layer(self, output: DetectorOutput, targets: Sequence[Target], *, told: Tensor | None = None) -> LossParts:
        """Compute the same loss without the sums over layers; arguments and errors as for the call."""
        training = output.training
        if training is None:
            raise ValueError("The output has no training part: call the model in training mode, with the targets.")
        self._check(training, targets)
        with torch.autocast(training.layer_logits.device.type, enabled=False):
            flat = _flatten(targets, training.layer_logits.device, told)
            edges, layers, queries = training.edges, training.layer_logits.shape[0], training.layer_logits.shape[2]
            # The first plain boxes and the encoder's proposals are extra layers: matched and supervised in the same steps.
            more = (training.encoder_logits, training.encoder_boxes)
            logits, boxes = _stacked(training.layer_logits, training.layer_boxes, edges, more)
            matches = self.matcher.match(logits.detach(), boxes.detach(), targets)
            pairs = None if edges is None else united(matches, queries, flat.most)
            dense_pairs = None if training.dense is None else task_aligned_pairs(training.dense, targets)
            counts = _count(flat, pairs, training, dense_pairs)
            losses, quality = self._supervise(logits, boxes, matches, flat, counts.targets, pairs, counts.pairs)
            of_layers = _of_layers(losses, slice(layers))
            if edges is not None and pairs is not None:
                of_layers |= self._edge_losses(
                    edges, logits[layers - 1], pairs, quality, flat, counts.pairs, counts.matching
                )
            denoising, initial = _of_layers(of_layers, slice(0)), _of_layers(losses, slice(layers, -1))
            if training.denoising is not None:
                denoising, noisy = self._denoise(training.denoising, flat, counts)
                initial = {term: torch.cat((value, noisy[term])) for term, value in initial.items()}
            dense = {}
            if training.dense is not None and dense_pairs is not None:
                dense = self._dense_losses(training.dense, dense_pairs, flat, counts.dense)
        encoder = _of_layers(losses, slice(-1, None))
        return LossParts(of_layers, encoder, denoising, {} if edges is None else initial, dense)

    def _denoise(self, denoising: DenoisingOutput, flat: _FlatTargets, counts: _Counts) -> tuple[LayerLosses, LayerLosses]:
        """Losses of the layers, and of the first plain boxes."""
        plan, layers, edges = denoising.plan, denoising.logits.shape[0], denoising.edges
        pairs = Matches(torch.zeros_like(plan.batch_index), plan.batch_index, plan.query_index, plan.target_index)
        # Each target is in every group once.
        number = counts.targets * max(plan.groups, 1)
        logits, boxes = _stacked(denoising.logits, denoising.boxes, edges)
        losses, quality = self._supervise(logits, boxes, _on_layers(pairs, logits.shape[0]), flat, number)
        of_layers = _of_layers(losses, slice(layers))
        if edges is not None:
            of_layers |= self._edge_losses(edges, logits[layers - 1], pairs, quality, flat, number, counts.denoising)
        return of_layers, _of_layers(losses, slice(layers, None))

    def _supervise(
        self,
        logits: Tensor,
        boxes: Tensor,
        matches: Matches,
        flat: _FlatTargets,
        number: Tensor,
        pairs: Matches | None = None,
        pair_number: Tensor | None = None,
    ) -> tuple[LayerLosses, Tensor]:
        """Losses per layer of [L, B, Q, C] logits and [L, B, Q, 4] boxes, given the positives and their targets.

        With ``pairs``, one set for all layers, these say which boxes are trained, and ``matches`` which logits.

        Returns:
            The losses, and the IoU of the trained boxes with their targets, [L, pairs].
        """
        layers = logits.shape[0]
        places, rows = (matches.layer_index, matches.batch_index, matches.query_index), flat.rows(matches)
        trained_rows = rows if pairs is None else flat.rows(pairs)
        with torch.set_grad_enabled(pairs is None and torch.is_grad_enabled()):
            terms = pair_terms(boxes[places], flat.boxes[rows])  # [M] each
        positives = (*places, flat.labels[rows])
        classes = self._class_loss(logits, positives, terms.iou)  # [L, B, Q, C]
        if flat.weights is not None:
            classes = classes * class_factors(logits, boxes, positives, flat.weights[rows], flat.doubtful, flat.told)
        box_number = number
        if pairs is not None and pair_number is not None:
            trained, box_number = boxes[:, pairs.batch_index, pairs.query_index], pair_number
            terms = pair_terms(trained, flat.boxes[trained_rows].expand_as(trained))  # [L, P] each
        # Zero, unless a value is not finite: a NaN in an unmatched box would otherwise reach the gradients unnoticed.
        bad_logits, bad_boxes = (values.detach().flatten(1).sum(1) * 0 for values in (logits, boxes))  # [L] each
        shape = (layers, terms.l1.numel() // layers)  # every layer has the same number of pairs
        losses = {
            _CLASS_TERMS[self.class_loss]: classes.flatten(1).sum(1) * (self.vfl_weight / number) + bad_logits,
            "l1": flat.weighted(terms.l1, trained_rows).view(shape).sum(1) * (self.l1_weight / box_number) + bad_boxes,
            "giou": flat.weighted(terms.giou, trained_rows).view(shape).sum(1) * (self.giou_weight / box_number),
        }
        return losses, terms.iou.view(shape)

    def _edge_losses(
        self,
        edges: EdgeOutput,
        last_logits: Tensor,
        pairs: Matches,
        quality: Tensor,
        flat: _FlatTargets,
        number: Tensor,
        counts: tuple[Tensor, Tensor],
    ) -> LayerLosses:
        """FGL and DDF per layer, given the last layer's logits [B, Q, C] and the layers' IoUs [L or more, P]."""
        layers = edges.bins.shape[0]
        fgl = ddf = torch.zeros(layers, device=quality.device)
        if self.fine_grained_weight:
            rows = flat.rows(pairs)
            by_pair = flat.weighted(fine_grained_loss(edges, pairs, flat.boxes[rows], quality[:layers]), rows)
            fgl = by_pair.sum(1) * (self.fine_grained_weight / number)
        if self.distillation_weight:
            confidence = last_logits.detach().amax(-1).sigmoid()
            teacher, pupils = edges.bins[-1], edges.bins[:-1]
            ddf = distillation_loss(pupils, teacher, pairs, confidence, quality[: layers - 1], counts)
            ddf = torch.cat((ddf * self.distillation_weight, ddf.new_zeros(1)))
        return {"fgl": fgl, "ddf": ddf}

    def _dense_losses(self, dense: DenseOutput, pairs: DensePairs, flat: _FlatTargets, number: Tensor) -> LayerLosses:
        """Losses of all tokens, [1] each; every pair is weighted with its quality."""
        logits, boxes = dense.logits.float(), dense.boxes.float()
        places, rows = (pairs.batch_index, pairs.token_index), flat.offsets[pairs.batch_index] + pairs.target_index
        positives, quality = (*places, flat.labels[rows]), flat.weighted(pairs.quality, rows)
        classes = varifocal_loss(logits, positives, pairs.quality, self.alpha, self.gamma)
        if flat.weights is not None:
            one = torch.zeros_like(positives[0])
            factors = class_factors(
                logits[None], boxes[None], (one, *positives), flat.weights[rows], flat.doubtful, flat.told
            )
            classes = classes * factors[0]
        terms = pair_terms(boxes[places], flat.boxes[rows])
        factor = self.dense_weight / number
        losses = {
            "vfl": classes.sum() * (factor * self.vfl_weight) + logits.detach().sum() * 0,
            "l1": (terms.l1 * quality).sum() * (factor * self.l1_weight) + boxes.detach().sum() * 0,
            "giou": (terms.giou * quality).sum() * (factor * self.giou_weight),
        }
        return {term: value[None] for term, value in losses.items()}

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


def _on_layers(pairs: Matches, layers: int) -> Matches:
    """Repeat the pairs of one layer for all."""
    first = torch.arange(layers, device=pairs.layer_index.device).repeat_interleave(len(pairs))
    rest = (index.repeat(layers) for index in (pairs.batch_index, pairs.query_index, pairs.target_index))
    return Matches(first, *rest)


def _stacked(
    logits: Tensor, boxes: Tensor, edges: EdgeOutput | None, *more: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Concatenate [L, B, Q, …] layers, the first plain boxes if any, and further [B, Q, …] ones; in float32."""
    extra = [*([] if edges is None else [(edges.first_logits, edges.first_boxes)]), *more]
    joined_logits = torch.cat((logits.float(), *(one.float()[None] for one, _ in extra)))
    return joined_logits, torch.cat((boxes.float(), *(one.float()[None] for _, one in extra)))


def _flatten(targets: Sequence[Target], device: torch.device, told: Tensor | None) -> _FlatTargets:
    counts = [len(target) for target in targets]
    pseudo = [target for target in targets if isinstance(target, PseudoTarget)]  # all of them, or none
    return _FlatTargets(
        boxes=torch.cat([target.boxes for target in targets]).to(device, torch.float32),
        labels=torch.cat([target.labels for target in targets]).to(device),
        offsets=torch.tensor([0, *accumulate(counts[:-1])], device=device),
        most=max(counts),
        weights=torch.cat([target.confidence for target in pseudo]).to(device) if pseudo else None,
        doubtful=[target.doubtful for target in pseudo],
        told=None if told is None else told.to(device),
    )


def _count(flat: _FlatTargets, pairs: Matches | None, training: TrainingOutput, dense: DensePairs | None) -> _Counts:
    """Count over all processes, in one exchange."""
    numbers: list[float] = [len(flat)]
    if pairs is not None:
        noisy = training.denoising
        of_denoising = (0, 0) if noisy is None else (len(noisy.plan.query_index), noisy.logits[0, :, :, 0].numel())
        numbers += [len(pairs), training.encoder_logits[..., 0].numel(), *of_denoising]
    counts = torch.tensor(numbers, dtype=torch.float32, device=flat.labels.device)
    if dense is not None:  # stays on the device: reading it would synchronise
        counts = torch.cat((counts, dense.quality.nan_to_num().sum().float()[None]))
    counts, world = mean_over_processes(counts)
    least = counts.clamp(min=1 / world)
    targets, quality = least[0], least[-1]
    if pairs is None:
        return _Counts(targets, targets, (targets, targets), (targets, targets), quality)
    some, queries, positives, noise = counts[1:5].unbind()
    return _Counts(targets, least[1], (some, queries - some), (positives, noise - positives), quality)
