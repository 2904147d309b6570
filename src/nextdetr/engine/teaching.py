"""Learning from a teacher: the queries of each step, the losses, and projections that exist only in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from nextdetr.config import TrainConfig
from nextdetr.engine.teacher import Teacher
from nextdetr.errors import ConfigError
from nextdetr.losses.distill import DistillationLoss, MapProjections
from nextdetr.models.detection import DetectionModel
from nextdetr.models.dfine import DFINEDecoder
from nextdetr.structures import DetectorOutput, Lesson, Questions

__all__ = ["Teaching"]


class Teaching:
    """The teacher's part of each step.

    Args:
        teacher: matched with the classes of the data.
        pupil: the model to train.
        config: weights of the teacher's losses.
        fabric: devices, processes and precision, also for the teacher.

    Raises:
        ConfigError: the settings leave nothing to teach.
    """

    def __init__(self, teacher: Teacher, pupil: DetectionModel, config: TrainConfig, fabric: Fabric) -> None:
        self.teacher, self.fabric, self.until = teacher, fabric, config.teacher_until
        self.asks_places = config.teacher_weight > 0
        maps = {stride: index for stride, index in pupil.backbone_maps().items() if stride in teacher.maps}
        self.strides = tuple(sorted(maps)) if config.teacher_maps > 0 else ()
        if not self.asks_places and not self.strides:
            raise ConfigError(f"{teacher.source}: with these weights it teaches nothing: set --teacher-weight above 0.")
        self.loss = DistillationLoss(
            config.teacher_weight, config.teacher_maps, edge_weight=config.fine_grained_weight
        )  # fmt: skip
        self.lesson: Lesson | None = None
        edges = teacher.has_edges and isinstance(pupil.rows[-1], DFINEDecoder)
        names = ["class", "l1", "giou", *(["edges"] if edges else [])] if self.asks_places else []
        self.names = [f"loss_teacher_{name}" for name in [*names, *(["maps"] if self.strides else [])]]
        model = teacher.opened.model
        channels = {}
        if isinstance(model, DetectionModel):
            channels = {
                stride: (pupil.channels_of(maps[stride]), model.channels_of(teacher.maps[stride]))
                for stride in self.strides
            }
        with torch.random.fork_rng(devices=[]):  # same in all processes
            torch.manual_seed(config.seed)
            self.projections = MapProjections(channels).to(fabric.device)
        teacher.to(fabric.device)

    def lines(self, pupil: DetectionModel) -> list[str]:
        """Return the message for the user."""
        return self.teacher.lines(pupil, places=self.asks_places, maps=self.strides)

    def parameter_groups(self, config: TrainConfig) -> list[dict[str, Any]]:
        """Return the parameter group of the projections, at the head's rate; empty without any."""
        parameters = list(self.projections.parameters())
        group = {
            "params": parameters, "lr": config.learning_rate, "peak_rate": config.learning_rate,
            "weight_decay": config.weight_decay, "backbone": False, "name": "projections to the teacher's maps",
        }  # fmt: skip
        return [group] if parameters else []

    def ask(self, images: Tensor, progress: float) -> Questions | None:
        """Run the teacher on a batch and return the queries for the student; None after its part of the run.

        Args:
            images: [B, 3, S, S] float32 RGB, 0 to 1.
            progress: completed fraction of the run.
        """
        self.lesson = None
        if progress >= self.until:
            return None
        with self.fabric.autocast():
            self.lesson = self.teacher.teach(images, self.strides)
        return Questions(self.lesson.points if self.asks_places else None, self.strides)

    def losses(self, output: DetectorOutput) -> dict[str, Tensor]:
        """Return the weighted losses for the last batch; always the same terms."""
        lesson, self.lesson = self.lesson, None
        if lesson is None or output.training is None or output.training.answers is None:
            return {name: output.logits.new_zeros((), dtype=torch.float32) for name in self.names}
        answers = output.training.answers
        return self.loss(answers, lesson, self.projections(answers.maps))

    def synchronize(self) -> None:
        """Average the gradients of the projections over the processes, as DDP does for the model."""
        gradients = [parameter.grad for parameter in self.projections.parameters() if parameter.grad is not None]
        if self.fabric.world_size == 1 or not gradients:
            return
        mean = self.fabric.all_reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduce_op="mean")
        assert isinstance(mean, Tensor)
        parts = torch.split(mean, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def state_dict(self) -> dict[str, Any]:
        """State for resuming, beside the optimizer's."""
        return self.projections.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.projections.load_state_dict(state)
