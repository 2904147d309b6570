"""Files that training writes about its detector: weights with their metadata, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from nextdetr.confidence import Thresholds, thresholds_metadata
from nextdetr.data.joined import name_of
from nextdetr.data.seen import MOST, TOO_MANY, TRAINED_ON, trained_on_metadata
from nextdetr.engine.batch_picture import draw_batch
from nextdetr.engine.setup import Run
from nextdetr.engine.splits import set_aside_metadata
from nextdetr.errors import WeightsError
from nextdetr.files import atomic_write, optional_file
from nextdetr.inference.opened import bits_metadata
from nextdetr.structures import Target
from nextdetr.weights.checkpoint import save_detector
from nextdetr.weights.licences import joined_teachers
from nextdetr.weights.tensorfile import open_tensors

__all__ = ["DetectorFiles"]


class DetectorFiles:
    """The files of one run; the first process writes them.

    Args:
        run: what training works on.
        average: the averaged weights, which are saved.
    """

    def __init__(self, run: Run, average: nn.Module) -> None:
        self.run, self.average = run, average

    @property
    def best(self) -> Path:
        """The file with the best weights."""
        return self.run.directory / "best.safetensors"

    def lines(self) -> list[str]:
        """Return what the files will not have, to be said before training."""
        if self._origin.get(TRAINED_ON) != TOO_MANY:
            return []
        return [f"More than {MOST:,} training images: the detector's file cannot list them for compare to leave out."]

    def has_written(self, name: str) -> bool:
        """Whether the file already has the averaged weights; its metadata may have more than a run writes."""
        file = self.run.directory / name
        if not file.is_file():
            return False
        state = self.average.state_dict()
        try:
            with open_tensors(file) as opened:
                return set(opened.keys()) == set(state) and all(
                    torch.equal(opened.get_tensor(key), value.cpu()) for key, value in state.items()
                )
        except WeightsError:
            return False

    def write(self, name: str, metrics: Mapping[str, float | None], thresholds: Thresholds) -> None:
        """Write the averaged weights, with their scores and thresholds, if any."""
        run, origin = self.run, self.run.started_from
        assert run.config.image_size is not None
        assert run.config.data is not None
        save_detector(
            run.directory / name, self.average.state_dict(), model_text=run.model.text, classes=run.train_data.classes,
            image_size=run.config.image_size, metrics=dict(metrics),
            weights_licence=origin.licence, source_weights=origin.file,
            data=name_of(run.config.data), extra=self._origin | thresholds_metadata(thresholds.values, thresholds.f1),
        )  # fmt: skip

    @cached_property
    def _origin(self) -> dict[str, str]:
        """Metadata of a detector's file about its data set, its images, and its teachers, also of earlier trainings."""
        run = self.run
        records = [*run.train_data.records, *(() if run.unlabelled is None else run.unlabelled.records)]
        data = run.identity.to_metadata() | set_aside_metadata(run.config, run.val_data)
        teachers = joined_teachers(run.started_from.taught, {} if run.teacher is None else run.teacher.to_metadata())
        seen = {} if run.trained_before is None else trained_on_metadata(records, run.trained_before)
        return data | seen | bits_metadata(run.train_data.reading.bits) | teachers

    def draw(self, images: Tensor, targets: Sequence[Target], name: str) -> None:
        """Draw a batch [B, 3, S, S] with its boxes into ``pictures/name``."""
        picture = draw_batch(images.cpu(), [t.to("cpu") for t in targets], self.run.train_data.classes)
        with optional_file(), atomic_write(self.run.directory / "pictures" / name) as temporary:
            picture.save(temporary, quality=90)
