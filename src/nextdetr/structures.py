"""Typed values that pass between data, model, losses and inference.

Boxes of targets and of model outputs are (centre x, centre y, width, height), as fractions (0 to 1) of the model's input
image. Boxes that a user sees are (x1, y1, x2, y2) in pixels of the original image.

They are not frozen, since lightning-fabric maps over the fields of a dataclass by assignment; nothing else assigns to them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

__all__ = [
    "Answers",
    "Batch",
    "DenoisingOutput",
    "DenoisingPlan",
    "DenseOutput",
    "DetectorOutput",
    "EdgeOutput",
    "Lesson",
    "Questions",
    "Target",
    "TrainingOutput",
    "Uncast",
]

T = TypeVar("T")


@dataclass(slots=True)
class Target:
    """Contents of one image; N may be 0.

    Attributes:
        boxes: [N, 4] float32, cxcywh, fractions of the image, 0 to 1.
        labels: [N] int64, class indices 0 to C-1.
        view: for an unlabelled image, [2, 3] float32: maps a point (x, y, 1) of the whole image, as fractions of it, to
            this view, as fractions of that; None for other images.
    """

    boxes: Tensor
    labels: Tensor
    view: Tensor | None = None

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def to(self, device: torch.device | str) -> Target:
        """Return the same target on another device."""
        view = None if self.view is None else self.view.to(device)
        return replace(self, boxes=self.boxes.to(device), labels=self.labels.to(device), view=view)


@dataclass(slots=True)
class Batch:
    """One collated batch.

    Attributes:
        images: [B, 3, H, W] float32 RGB, 0 to 1.
        targets: one per image.
        indices: position of each image in its ``DetectionData.records``.
    """

    images: Tensor
    targets: list[Target]
    indices: list[int]

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch on another device."""
        return replace(
            self, images=self.images.to(device, non_blocking=True), targets=[target.to(device) for target in self.targets]
        )


class Uncast(Generic[T]):
    """An argument of a model that lightning-fabric passes on as it is.

    Fabric casts every float in the arguments of its forward, also in lists and dataclasses, to the precision of the
    products: boxes in bfloat16 are off by up to 1/512 of the image. It does not look into this class.
    """

    def __init__(self, value: T) -> None:
        self.value = value

    @staticmethod
    def of(value: T | Uncast[T]) -> T:
        """Return the argument, wrapped or not."""
        return value.value if isinstance(value, Uncast) else value


@dataclass(slots=True)
class DenoisingPlan:
    """How denoising query d of image b relates to that image's targets.

    Attributes:
        groups: number of denoising groups (G); every target is in each once as a positive and once as a negative.
        batch_index, query_index, target_index: [P] int64 each; the p-th positive is query ``query_index[p]`` of image
            ``batch_index[p]`` and must reproduce target ``target_index[p]`` of that image.
    """

    groups: int
    batch_index: Tensor
    query_index: Tensor
    target_index: Tensor


@dataclass(slots=True)
class EdgeOutput:
    """Edge distributions of a D-FINE decoder, supervised beside logits and boxes.

    Attributes:
        bins: [L, B, Q, 4, N+1] logits of the distributions over left, top, right and bottom edge.
        anchors: [B, Q, 4] cxcywh to which the edges are relative, without gradient.
        offsets: [N+1] W(n), the value of bin n, in units of the anchor's size divided by ``scale``.
        scale: see ``offsets``.
        first_logits: [B, Q, C] of the first layer, without the distributions' quality.
        first_boxes: [B, Q, 4] cxcywh, 0 to 1: the anchors, with their gradient.
    """

    bins: Tensor
    anchors: Tensor
    offsets: Tensor
    scale: float
    first_logits: Tensor
    first_boxes: Tensor

    def of_queries(self, queries: slice) -> EdgeOutput:
        """Return the same for some of the queries."""
        rest = (self.anchors[:, queries], self.offsets, self.scale, self.first_logits[:, queries])
        return EdgeOutput(self.bins[:, :, queries], *rest, self.first_boxes[:, queries])


@dataclass(slots=True)
class DenoisingOutput:
    """Predictions of the D denoising queries on every decoder layer.

    Attributes:
        logits: [L, B, D, C].
        boxes: [L, B, D, 4] cxcywh, 0 to 1.
        plan: which of them are positives, and their targets.
        edges: distributions of a D-FINE decoder.
    """

    logits: Tensor
    boxes: Tensor
    plan: DenoisingPlan
    edges: EdgeOutput | None = None


@dataclass(slots=True)
class DenseOutput:
    """Predictions of a dense head for every token of the encoder's maps.

    Attributes:
        logits: [B, S, C].
        boxes: [B, S, 4] cxcywh, 0 to 1.
        cells: [S, 4] cxcywh, the part of the image that each token covers.
    """

    logits: Tensor
    boxes: Tensor
    cells: Tensor


class Questions:
    """What a teacher asks of its student besides the detections.

    Like ``UncastTargets``, lightning-fabric does not look into it, so that the places keep their full precision.

    Args:
        points: [B, K, 4] float32 cxcywh, 0 to 1: places to predict at, in the first B images of the batch; or None.
        strides: strides of the backbone maps to return.
    """

    def __init__(self, points: Tensor | None, strides: tuple[int, ...] = ()) -> None:
        self.points, self.strides = points, strides


@dataclass(slots=True)
class Answers:
    """Answers of a detector in training to ``Questions``.

    Attributes:
        logits: [M, B, K, C] of the encoder, of a D-FINE decoder's first layer without the quality from its distributions,
            and of the L layers, the last one last: M is L + 2 with these distributions, else L + 1; None without points.
        boxes: [M, B, K, 4] cxcywh, 0 to 1, of the same.
        edges: distributions of a D-FINE decoder, for all L layers.
        maps: the backbone's maps by stride, each [B, channels, H / stride, W / stride].
    """

    logits: Tensor | None = None
    boxes: Tensor | None = None
    edges: EdgeOutput | None = None
    maps: dict[int, Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class Lesson:
    """Predictions of a teacher at K places of each image of a batch, and its maps; all without gradient.

    Attributes:
        points: [B, K, 4] cxcywh, 0 to 1: the places, where the student's queries start.
        scores: [B, K, C] float32, 0 to 1: probability of each of the student's classes.
        told: [B, K, C] bool: which of these the teacher knows; all False for unused places.
        boxes: [B, K, 4] cxcywh, 0 to 1.
        confidence: [B, K] the highest known score, 0 without one; weight of the predictions at that place.
        edges: distributions of a D-FINE decoder's evaluated layer; None for others, or for an exported file.
        maps: the backbone's maps by stride, [B, channels, height, width] each; empty for an exported file.
    """

    points: Tensor
    scores: Tensor
    told: Tensor
    boxes: Tensor
    confidence: Tensor
    edges: EdgeOutput | None = None
    maps: dict[int, Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class TrainingOutput:
    """Everything that the criterion supervises; absent at inference.

    Attributes:
        layer_logits: [L, B, Q, C], one per decoder layer, the last layer last.
        layer_boxes: [L, B, Q, 4] cxcywh, 0 to 1.
        encoder_logits: [B, Q, C] of the encoder's selected proposals.
        encoder_boxes: [B, Q, 4] cxcywh, 0 to 1.
        denoising: None if the batch has no denoising queries.
        edges: distributions of a D-FINE decoder; None for others.
        dense: outputs of a dense head, if there is one.
        answers: answers to a teacher's questions; None without a teacher.
    """

    layer_logits: Tensor
    layer_boxes: Tensor
    encoder_logits: Tensor
    encoder_boxes: Tensor
    denoising: DenoisingOutput | None
    edges: EdgeOutput | None = None
    dense: DenseOutput | None = None
    answers: Answers | None = None


@dataclass(slots=True)
class DetectorOutput:
    """What ``DetectionModel.forward`` returns.

    Attributes:
        logits: [B, Q, C] of the last decoder layer; one sigmoid per class, no background class.
        boxes: [B, Q, 4] cxcywh, 0 to 1.
        training: the outputs to supervise; None in evaluation mode.
    """

    logits: Tensor
    boxes: Tensor
    training: TrainingOutput | None = None
