"""Learning from unlabelled images: the averaged weights predict boxes, and the model in training learns them.

Mean teacher with pseudo-boxes (Unbiased Teacher, arXiv 2102.09480; Soft Teacher, arXiv 2106.09018; for DETRs Semi-DETR,
arXiv 2307.08095). The teacher sees the whole image, the student an augmented part; see ``data/unlabelled_views.py`` for the
views and ``losses/pseudo.py`` for which predictions count. With ``--teacher``, that fixed detector predicts the boxes, from
the first step.

Labelled and unlabelled images pass through the student together, so that BatchNorm sees both; their losses are separate.
The one-to-many assignment of Semi-DETR's first stage is left to the dense head, if the model has one: the criterion's dense
losses also apply to pseudo-boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from nextdetr.config import TrainConfig
from nextdetr.data.records import DetectionData
from nextdetr.engine.launch import largest
from nextdetr.engine.teacher import Teacher
from nextdetr.losses.criterion import Criterion
from nextdetr.losses.pseudo import PseudoTarget, Thresholds, find_boxes, of_images, seen_through
from nextdetr.models.detection import DetectionModel
from nextdetr.models.dfine import DFINEDecoder
from nextdetr.structures import Batch, DetectorOutput, Target

__all__ = ["Semi", "Views", "labelled_output", "together"]

RAMP = 0.1  # fraction of the run in which the loss grows to its full weight
_TERMS = {"vfl": "class", "mal": "class", "l1": "l1", "giou": "giou", "fgl": "edges", "ddf": "edges"}


@dataclass(slots=True)
class Views:
    """The unlabelled images of a batch.

    Attributes:
        student: [U, 3, S, S], augmented views to learn from.
        teacher: [U, 3, S, S], the whole images.
        ways: [2, 3] each, transforms from the whole image to the student's view.
        targets: the teacher's boxes in the student's view; filled in by ``look``.
    """

    student: Tensor
    teacher: Tensor
    ways: list[Tensor]
    targets: list[PseudoTarget]


class Semi:
    """The part of each step for the unlabelled images.

    Args:
        labelled: the training split; its boxes per image are the expectation for the unlabelled images.
        unlabelled: the unlabelled images.
        model: the model in training.
        average: the average of its weights, in evaluation mode: the teacher.
        criterion: the detection losses.
        config: when the images join, and their weight.
        fabric: devices, processes and precision.
        teacher: a fixed teacher to use instead of the average.
    """

    def __init__(
        self, labelled: DetectionData, unlabelled: DetectionData, model: DetectionModel, average: torch.nn.Module,
        criterion: Criterion, config: TrainConfig, fabric: Fabric, teacher: Teacher | None = None,
    ) -> None:  # fmt: skip
        self.labelled, self.images = len(labelled.records), len(unlabelled.records)
        self.average, self.criterion, self.fabric, self.teacher = average, criterion, fabric, teacher
        self.weight = config.unlabelled_weight
        self.start, self.end = config.unlabelled_from or 0.0, config.unlabelled_until
        self.told: Tensor | None = None  # [C], which classes a fixed teacher knows, if not all
        self.untold: list[str] = []
        frequency = _frequency(labelled)
        if teacher is not None and len(teacher.pairs) < len(labelled.classes):
            self.told = torch.zeros(len(labelled.classes), dtype=torch.bool)
            self.told[[index for index, _ in teacher.pairs]] = True
            frequency *= self.told
            self.untold = [name for name, told in zip(labelled.classes, self.told.tolist(), strict=True) if not told]
        self.thresholds = Thresholds(frequency)
        self.on = True  # until the guard switches it off
        self.met = False  # whether they have joined
        edges = isinstance(model.rows[-1], DFINEDecoder)
        self.names = [f"loss_unlabelled_{name}" for name in ("class", "l1", "giou", *(["edges"] if edges else []))]

    def joins(self, progress: float) -> bool:
        """Whether unlabelled images are part of a batch at this fraction of the run."""
        return self.on and self.start <= progress < self.end

    def split(self, batch: Batch) -> tuple[Batch, Views | None]:
        """Split a batch into labelled and unlabelled images; the latter are None unless all processes have some."""
        count = sum(index < self.labelled for index in batch.indices)
        rest = len(batch.indices) - count
        (missing,) = largest(self.fabric, not (rest and self.on))
        labelled = replace(batch, images=batch.images[:count], targets=batch.targets[:count], indices=batch.indices[:count])
        if missing:
            return labelled, None
        student, teacher = batch.images[count : count + rest // 2], batch.images[count + rest // 2 :]
        ways = [target.view for target in batch.targets[count : count + rest // 2] if target.view is not None]
        return labelled, Views(student, teacher, ways, [])

    @torch.no_grad()
    def look(self, views: Views) -> list[PseudoTarget]:
        """Run the teacher, and return its boxes in the student's views."""
        with self.fabric.autocast():
            if self.teacher is None:
                output: DetectorOutput = self.average(views.teacher)
                scores, boxes = output.logits.float().sigmoid(), output.boxes
            else:
                lesson = self.teacher.teach(views.teacher, (), places=None)  # what is no box is taught as background
                scores, boxes = lesson.scores, lesson.boxes
        found = find_boxes(scores, boxes)
        self.thresholds.update(found)
        whole = self.thresholds.targets(found)
        views.targets = [seen_through(target, way) for target, way in zip(whole, views.ways, strict=True)]
        return views.targets

    def losses(self, output: DetectorOutput, views: Views | None, progress: float) -> dict[str, Tensor]:
        """Return the weighted losses of the unlabelled images, which are last in ``output``; always the same terms."""
        zero = output.logits.new_zeros((), dtype=torch.float32)
        sums = dict.fromkeys(self.names, zero)
        if views is None:
            return sums
        part = of_images(output, slice(len(output.logits) - len(views.student), len(output.logits)))
        ramp = self.weight * self.thresholds.readiness * min(1.0, max(0.0, progress - self.start) / RAMP)
        for name, value in self.criterion(part, views.targets, told=self.told).items():
            term = f"loss_unlabelled_{_TERMS[name.split('_')[1]]}"
            sums[term] = sums[term] + value * ramp
        return sums

    def count(self, views: Views | None) -> Tensor:
        """Pseudo-boxes per image of this process; 0 without any."""
        boxes = [] if views is None else [len(target) for target in views.targets]
        return torch.tensor(sum(boxes) / max(1, len(boxes)), device=self.fabric.device)

    def lines(self) -> list[str]:
        """Return the message for the start of the run."""
        who = "the averaged weights" if self.teacher is None else str(self.teacher.source)
        lacking = f"; they teach nothing of {', '.join(self.untold)}, which it does not know" if self.untold else ""
        return [
            f"Unlabelled images: {self.images:,}, learnt from between {self.start:.0%} and {self.end:.0%} of the run; "
            f"their boxes come from {who}{lacking}."
        ]

    def state_dict(self) -> dict[str, Any]:
        """State for resuming."""
        return {**self.thresholds.state_dict(), "on": self.on, "met": self.met}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.thresholds.load_state_dict(dict(state))
        self.on, self.met = bool(state["on"]), bool(state["met"])


def together(batch: Batch, views: Views | None) -> tuple[Tensor, Sequence[Target]]:
    """Images and targets of the student's pass: labelled first, then unlabelled."""
    if views is None:
        return batch.images, batch.targets
    return torch.cat((batch.images, views.student)), [*batch.targets, *views.targets]


def labelled_output(output: DetectorOutput, batch: Batch, views: Views | None) -> DetectorOutput:
    """Return the part of the output that belongs to the labelled images."""
    return output if views is None else of_images(output, slice(len(batch.images)))


def _frequency(data: DetectionData) -> Tensor:
    """Boxes per image of each class, without crowds, [C]."""
    counts = torch.zeros(len(data.classes))
    for record in data.records:
        labels = torch.as_tensor(record.labels)[~torch.as_tensor(record.crowd)]
        counts += torch.bincount(labels, minlength=len(data.classes))
    return counts / max(1, len(data.records))
