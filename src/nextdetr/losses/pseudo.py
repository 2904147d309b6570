"""Pseudo-boxes on unlabelled images: which of a teacher's predictions count as boxes, and their weights in the loss.

- Thresholds adapt by class (LabelMatch, arXiv 2206.06608, section 3.1): the threshold of a class is the score above which
  the teacher finds as many boxes per image as the labelled images have. Scores are low early in training, and stay low for
  rare classes; a fixed threshold would exclude them forever, or let everything in.
- Predictions between that and a lower threshold are uncertain. They are neither boxes nor background: a query that overlaps
  one is not trained towards "no object" (the "uncertain" of LabelMatch, section 3.2).
- Each box is weighted with the teacher's confidence (Soft Teacher, arXiv 2106.09018, section 3.2).

Differences: the counts are a decaying histogram, so that thresholds follow the teacher and the state is a few hundred
numbers; and since scores are predicted IoUs here (varifocal), a confident box is also well localised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nextdetr.boxes import cxcywh_to_xyxy, paired_iou_and_giou, xyxy_to_cxcywh
from nextdetr.losses.processes import mean_over_processes
from nextdetr.structures import DenoisingOutput, DenoisingPlan, DenseOutput, DetectorOutput, EdgeOutput, Target

__all__ = ["Found", "PseudoTarget", "Thresholds", "class_factors", "find_boxes", "of_images", "seen_through"]

BINS = 200  # of the histogram of the scores' square roots, which resolves low scores
KEPT = 0.98  # decay of the histogram per batch: it spans about 50 batches
LEAST, LEAST_DOUBTFUL = 0.1, 0.02  # of the thresholds for boxes and uncertain boxes
DUPLICATE = 0.7  # IoU from which two boxes of a class are duplicates
DOUBTFUL = 0.4  # IoU with an uncertain box from which a query is not trained towards "no object"
VISIBLE = 0.4  # fraction of a box's area that must be visible in a view to count as a box


@dataclass(slots=True)
class PseudoTarget(Target):
    """A teacher's predictions in one image; boxes as in ``Target``.

    Attributes:
        confidence: [N] float32, 0 to 1, weight of each box in the loss.
        doubtful: [M, 4] float32, cxcywh, fractions of the image: uncertain boxes.
    """

    confidence: Tensor = field(default_factory=lambda: torch.zeros(0))
    doubtful: Tensor = field(default_factory=lambda: torch.zeros(0, 4))


@dataclass(slots=True)
class Found:
    """A teacher's boxes in one image, without the lowest scores and duplicates.

    Attributes:
        boxes: [K, 4] cxcywh, fractions of the image.
        labels: [K] int64.
        scores: [K] float32.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor


def find_boxes(scores: Tensor, boxes: Tensor) -> list[Found]:
    """Return the teacher's boxes in each image.

    Args:
        scores: [B, Q, C] float32, 0 to 1.
        boxes: [B, Q, 4] cxcywh, fractions of the image.
    """
    from torchvision.ops import batched_nms  # 160 MB, which the other losses do not need

    best, labels = scores.max(dim=-1)
    found = []
    for score, label, box in zip(best, labels, boxes.float(), strict=True):
        some = (score >= LEAST_DOUBTFUL).nonzero().flatten()
        score, label, box = score[some], label[some], box[some]
        kept = batched_nms(cxcywh_to_xyxy(box), score, label, DUPLICATE)
        found.append(Found(box[kept], label[kept], score[kept]))
    return found


class Thresholds:
    """Score thresholds by class for boxes and for uncertain boxes.

    Args:
        frequency: [C] boxes of each class per labelled image.
        certain: fraction of the frequency up to which boxes are accepted.
        doubtful: fraction of the frequency up to which they are uncertain.
    """

    def __init__(self, frequency: Tensor, *, certain: float = 0.7, doubtful: float = 2.0) -> None:
        self.frequency = frequency.float()
        self.certain, self.doubtful = certain, doubtful
        self.counts = torch.zeros(len(frequency), BINS)  # of scores by class, decaying
        self.images = 0.0

    def update(self, found: Sequence[Found]) -> None:
        """Count a batch; a collective call with several processes."""
        classes = len(self.frequency)
        counts = torch.zeros(classes * BINS)
        for one in found:
            bins = (one.scores.sqrt() * BINS).long().clamp(0, BINS - 1)
            counts += torch.bincount(one.labels.cpu() * BINS + bins.cpu(), minlength=classes * BINS)
        device = found[0].scores.device if found else counts.device
        together, world = mean_over_processes(torch.cat((counts, torch.tensor([float(len(found))]))).to(device))
        together = together.cpu() * world
        self.counts = self.counts * KEPT + together[:-1].view(classes, BINS)
        self.images = self.images * KEPT + float(together[-1])

    @property
    def readiness(self) -> float:
        """The teacher's boxes as a fraction of the expected number, 0 to 1: how much there is to learn."""
        expected = self.certain * self.images * self.frequency
        enough = self.counts[:, round(LEAST**0.5 * BINS) :].sum(dim=1)
        return float(torch.minimum(enough, expected).sum() / expected.sum().clamp(min=1e-6))

    def of_share(self, share: float, least: float) -> Tensor:
        """Return the score [C] above which ``share`` of each class's frequency lies, and at least ``least``."""
        above = self.counts.flip(1).cumsum(1).flip(1)  # [C, BINS] counts from each bin on
        wanted = (share * self.images * self.frequency)[:, None]
        enough = (above > wanted).sum(dim=1)  # bins from which there are more than that
        return (enough / BINS).square().clamp(min=least)

    def targets(self, found: Sequence[Found]) -> list[PseudoTarget]:
        """Return the boxes and uncertain boxes of each image."""
        device = found[0].scores.device if found else None
        high = self.of_share(self.certain, LEAST).to(device)
        low = self.of_share(self.doubtful, LEAST_DOUBTFUL).to(device)
        targets = []
        for one in found:
            sure = one.scores >= high[one.labels]
            doubt = ~sure & (one.scores >= low[one.labels])
            targets.append(
                PseudoTarget(one.boxes[sure], one.labels[sure], None, one.scores[sure].clone(), one.boxes[doubt])
            )
        return targets

    def state_dict(self) -> dict[str, Tensor]:
        """State for resuming."""
        return {"counts": self.counts, "images": torch.tensor(self.images, dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from :meth:`state_dict`."""
        self.counts, self.images = state["counts"].cpu(), float(state["images"])


def seen_through(target: PseudoTarget, view: Tensor) -> PseudoTarget:
    """Map a teacher's boxes from the whole image to a view of it.

    Args:
        target: boxes in fractions of the image.
        view: [2, 3], see ``Target.view``: translation, scaling, mirroring and quarter turns.

    Returns:
        Boxes in fractions of the view, clipped to it. Barely visible ones become uncertain, those outside are dropped.
    """
    boxes, share = _carried(target.boxes, view)
    doubtful, shown = _carried(target.doubtful, view)
    whole, part = share >= VISIBLE, (share > 0) & (share < VISIBLE)
    return PseudoTarget(
        boxes[whole], target.labels[whole], None, target.confidence[whole], torch.cat((doubtful[shown > 0], boxes[part]))
    )


def _carried(boxes: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes [N, 4] cxcywh in the view, clipped to it, and the visible fraction of each, [N]."""
    corners = cxcywh_to_xyxy(boxes).view(-1, 2, 2)
    moved = corners @ view[:, :2].to(boxes).T + view[:, 2].to(boxes)
    low, high = moved.amin(dim=1), moved.amax(dim=1)
    area = (high - low).prod(dim=1)
    low, high = low.clamp(0, 1), high.clamp(0, 1)
    share = (high - low).prod(dim=1) / area.clamp(min=1e-12)
    return xyxy_to_cxcywh(torch.cat((low, high), dim=1)), share


def class_factors(
    logits: Tensor,
    boxes: Tensor,
    positives: tuple[Tensor, ...],
    weights: Tensor,
    doubtful: Sequence[Tensor],
    told: Tensor | None = None,
) -> Tensor:
    """Weight of each logit in the loss of pseudo-boxes.

    Args:
        logits: [L, B, Q, C].
        boxes: [L, B, Q, 4] cxcywh.
        positives: index tensors [P] of layer, image, query and class of the positives.
        weights: [P] of the positives.
        doubtful: uncertain boxes of each image, [M, 4] cxcywh.
        told: [C] bool, classes that the teacher knows; None for all.

    Returns:
        [L, B, Q, C]: a positive's weight; 0 for all other classes of an unmatched query that overlaps an uncertain box, and
        for classes that the teacher does not know; otherwise 1.
    """
    factors = torch.ones_like(logits)
    if max((len(one) for one in doubtful), default=0):
        padded = cxcywh_to_xyxy(pad_sequence([one.float() for one in doubtful], batch_first=True))  # [B, M, 4]
        overlap, _ = paired_iou_and_giou(cxcywh_to_xyxy(boxes.detach())[..., None, :], padded[None, :, None])
        factors[(overlap >= DOUBTFUL).any(dim=-1)] = 0.0
        factors[positives[:-1]] = 1.0
    if told is not None:
        factors[..., ~told] = 0.0
    factors[positives] = weights
    return factors


def of_images(output: DetectorOutput, images: slice) -> DetectorOutput:
    """Return the outputs of some images of a batch, ``images`` without a step, as if they had been their own batch."""
    training = output.training
    if training is None:
        return DetectorOutput(output.logits[images], output.boxes[images])
    first, last, _ = images.indices(len(output.logits))
    edges, dense, denoising = training.edges, training.dense, training.denoising
    part = replace(
        training,
        layer_logits=training.layer_logits[:, images], layer_boxes=training.layer_boxes[:, images],
        encoder_logits=training.encoder_logits[images], encoder_boxes=training.encoder_boxes[images],
        edges=None if edges is None else _edges_of(edges, images),
        dense=None if dense is None else DenseOutput(dense.logits[images], dense.boxes[images], dense.cells),
    )  # fmt: skip
    if denoising is not None:
        plan = denoising.plan
        mine = (plan.batch_index >= first) & (plan.batch_index < last)
        part.denoising = DenoisingOutput(
            denoising.logits[:, images], denoising.boxes[:, images],
            DenoisingPlan(plan.groups, plan.batch_index[mine] - first, plan.query_index[mine], plan.target_index[mine]),
            None if denoising.edges is None else _edges_of(denoising.edges, images),
        )  # fmt: skip
    return DetectorOutput(output.logits[images], output.boxes[images], part)


def _edges_of(edges: EdgeOutput, images: slice) -> EdgeOutput:
    return EdgeOutput(
        edges.bins[:, images], edges.anchors[images], edges.offsets, edges.scale, edges.first_logits[images],
        edges.first_boxes[images],
    )  # fmt: skip
