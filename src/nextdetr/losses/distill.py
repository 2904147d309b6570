"""Distillation losses of a small detector: classes, boxes and edges at the same places, and the backbone's maps.

- The places are the teacher's, and the student was queried at the same ones (KD-DETR, arXiv 2211.08071, section 3; see
  ``models/answers.py``), so no matching is needed. All layers of the student, including its encoder, learn the output of
  the teacher's evaluated layer.
- Classes: quality focal loss (GFL, arXiv 2006.04388, section 3.2) with the teacher's probabilities as soft targets, also at
  places where it sees nothing.
- Boxes: L1 and GIoU, each place weighted with the teacher's confidence.
- Edges, if both decoders are D-FINE's: localisation distillation (arXiv 2102.12252), the Kullback-Leibler divergence of the
  distributions. Teacher and student have their own anchors, bins and scales. So the teacher's distribution is moved to the
  student's bins, with each bin's probability split between the two neighbours of its edge's position (as in C51, arXiv
  1707.06887, section 4), which preserves the mean.
- Maps: one minus Pearson's correlation, channel by channel (PKD, arXiv 2207.02039), after a 1 x 1 convolution from the
  student's to the teacher's channels. It is invariant to scale and shift of either side, so there is nothing to tune.

Sums over places are divided by the sum of the teacher's confidences, as the criterion divides by the number of boxes, and
have the criterion's weights. All in float32, whatever the model's precision.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from nextdetr.boxes import cxcywh_to_xyxy, paired_iou_and_giou
from nextdetr.losses.processes import mean_over_processes
from nextdetr.models.edges import rebin
from nextdetr.structures import Answers, EdgeOutput, Lesson

__all__ = [
    "DistillationLoss",
    "MapProjections",
    "correlation_loss",
    "edge_divergence",
    "quality_focal_loss",
    "regression_loss",
]


class MapProjections(nn.Module):
    """Projections from the student's to the teacher's channels: a 1 x 1 convolution per stride, used in training only.

    Args:
        channels: channels of (student, teacher) by stride.
    """

    def __init__(self, channels: Mapping[int, tuple[int, int]]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({str(stride): nn.Conv2d(*pair, 1) for stride, pair in channels.items()})

    def forward(self, maps: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Return [B, channels of the teacher, height, width] by stride, float32."""
        return {int(stride): layer(maps[int(stride)].float()) for stride, layer in self.layers.items()}


class DistillationLoss:
    """The losses of one batch against the teacher's.

    Args:
        weight: factor of the losses of classes, boxes and edges; 0 disables them.
        maps_weight: weight of the maps' loss, the mean over the strides; 0 disables it.
        l1_weight: weight of the L1 distance of the boxes.
        giou_weight: weight of their GIoU loss.
        edge_weight: weight of the edges' divergence.
        gamma: exponent of the quality focal loss.
    """

    def __init__(
        self,
        weight: float = 1.0,
        maps_weight: float = 1.0,
        *,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        edge_weight: float = 0.15,
        gamma: float = 2.0,
    ) -> None:
        self.weight, self.maps_weight = weight, maps_weight
        self.l1_weight, self.giou_weight, self.edge_weight, self.gamma = l1_weight, giou_weight, edge_weight, gamma

    def __call__(self, answers: Answers, lesson: Lesson, maps: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """Compute the losses; with several processes a collective call.

        Args:
            answers: predictions of the student.
            lesson: predictions of the teacher on the same images and places.
            maps: the student's maps with the teacher's channels, by stride; each has a counterpart in the lesson.

        Returns:
            Weighted float32 scalars: ``loss_teacher_class``, ``_l1`` and ``_giou`` if the student was queried at places,
            ``_edges`` if both sides have distributions, ``_maps`` if there are maps.
        """
        terms: dict[str, Tensor] = {}
        with torch.autocast(lesson.scores.device.type, enabled=False):
            if answers.logits is not None and answers.boxes is not None:
                terms |= self._of_places(answers.logits.float(), answers.boxes.float(), answers.edges, lesson)
            if maps:
                losses = [correlation_loss(maps[stride], lesson.maps[stride]) for stride in maps]
                terms["maps"] = torch.stack(losses).mean() * self.maps_weight
        return {f"loss_teacher_{name}": value for name, value in terms.items()}

    def _of_places(self, logits: Tensor, boxes: Tensor, edges: EdgeOutput | None, lesson: Lesson) -> dict[str, Tensor]:
        mean, world = mean_over_processes(lesson.confidence.sum().float())
        factor = self.weight / mean.clamp(min=1 / world)
        classes = quality_focal_loss(logits, lesson.scores, self.gamma) * lesson.told
        wanted = lesson.boxes.float().expand_as(boxes)
        l1 = (boxes - wanted).abs().sum(-1)  # [M, B, K]
        giou = 1 - paired_iou_and_giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(wanted))[1]
        terms = {
            "class": classes.sum() * factor,
            "l1": (l1 * lesson.confidence).sum() * (factor * self.l1_weight),
            "giou": (giou * lesson.confidence).sum() * (factor * self.giou_weight),
        }
        if edges is not None and lesson.edges is not None:
            divergence = edge_divergence(edges, lesson.edges)  # [L, B, K]
            terms["edges"] = (divergence * lesson.confidence).sum() * (factor * self.edge_weight)
        return terms


def quality_focal_loss(logits: Tensor, wanted: Tensor, gamma: float = 2.0) -> Tensor:
    """Binary cross-entropy with soft targets y, weighted by abs(y - p) ** gamma; the weight carries no gradient.

    Args:
        logits: [..., C].
        wanted: soft targets, 0 to 1, broadcastable to ``logits``, without gradient.
        gamma: how much nearly correct predictions are down-weighted.

    Returns:
        [..., C], not reduced.
    """
    wanted = wanted.expand_as(logits)
    weight = (logits.detach().sigmoid() - wanted).abs().pow(gamma)
    # log(1 + exp(x)) without log1p, which on x86 takes 20 times as long as log.
    softplus = logits.relu() - logits.abs().sigmoid().log()
    return weight * (softplus - wanted * logits)


def edge_divergence(pupil: EdgeOutput, teacher: EdgeOutput) -> Tensor:
    """Kullback-Leibler divergence of the student's edges from the teacher's, moved to the student's bins.

    Args:
        pupil: bins [L, B, K, 4, N+1].
        teacher: bins [1, B, K, 4, M+1], at the same places, without gradient.

    Returns:
        [L, B, K], the sum over the four edges.
    """
    known = rebin(
        teacher.bins[0].float().softmax(dim=-1), teacher.anchors.float(), teacher.offsets, teacher.scale,
        pupil.anchors.float(), pupil.offsets, pupil.scale,
    )  # [B, K, 4, N+1]  # fmt: skip
    guess = pupil.bins.float().log_softmax(dim=-1)
    return torch.xlogy(known, known).sum(dim=(-2, -1)) - (known * guess).sum(dim=(-2, -1))


def correlation_loss(pupil: Tensor, teacher: Tensor) -> Tensor:
    """One minus Pearson's correlation of each channel over all images and cells; the mean over the channels, 0 to 2.

    The images are those of one batch, as in PKD; with several processes each correlates its own, so unlike the other
    losses, this one differs from that of a single process with all images.

    Args:
        pupil: [B, C, height, width].
        teacher: [B, C, any height, any width]; resampled where these differ, without gradient.

    Returns:
        Scalar; a constant channel of the teacher has no correlation, and counts 1.
    """
    teacher = teacher.float()
    if teacher.shape[2:] != pupil.shape[2:]:
        teacher = functional.interpolate(teacher, size=pupil.shape[2:], mode="bilinear", antialias=True)
    ours, theirs = _centred(pupil.float()), _centred(teacher)
    spread = (ours.square().sum(1) * theirs.square().sum(1)).clamp(min=1e-12).sqrt()
    return (1 - (ours * theirs).sum(1) / spread).mean()


def regression_loss(pupil: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of two maps with corresponding channels, relative to each channel's variance in the teacher's.

    Args:
        pupil: [B, C, height, width].
        teacher: [B, C, height, width], without gradient.

    Returns:
        Scalar, the mean over the channels: 0 if they are equal, 1 if the student's is the mean of the teacher's. Channels
        with almost no variance (below a thousandth of the mean variance) are scaled as if they had that variance.
    """
    ours, theirs = (maps.float().transpose(0, 1).flatten(1) for maps in (pupil, teacher))
    variance = theirs.var(dim=1, unbiased=False)
    variance = variance.clamp(min=float(1e-3 * variance.mean()) + 1e-12)
    return ((ours - theirs).square().mean(dim=1) / variance).mean()


def _centred(maps: Tensor) -> Tensor:
    """[B, C, H, W] to [C, B · H · W], with the mean of each channel subtracted."""
    flat = maps.transpose(0, 1).flatten(1)
    return flat - flat.mean(dim=1, keepdim=True)
