"""Pre-training of a detector's head without labels, after its backbone; step and losses are in ``engine/train.py``.

The detector learns to find objects of one class in samples made from the user's images (``data/composed.py``), as DETReg
(arXiv 2106.04550) does with boxes from selective search. All tensors learn where objects are, except those with one row per
class; fine-tuning initialises each class from the row of ``object``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from nextdetr.config import PretrainConfig, TrainConfig
from nextdetr.data.composed import OBJECT, ComposeConfig, ComposedDataset, as_objects
from nextdetr.data.loader import EpochSampler, TrainLoader, build_loader
from nextdetr.data.transforms import TrainTransform
from nextdetr.engine.launch import launch
from nextdetr.engine.loading import AUGMENTATIONS, shrink_limit, training_sizes
from nextdetr.engine.log import Display
from nextdetr.engine.pretrain_setup import EPOCHS, detector_of, head_size, images_of, run_folder
from nextdetr.engine.recipe import RATE, RATE_OF
from nextdetr.engine.resume import Contract, tell_differences, write_config
from nextdetr.engine.setup import Run
from nextdetr.engine.state import Cursor, read_state
from nextdetr.engine.train import Trainer
from nextdetr.engine.unlabelled_run import ScoredByLoss
from nextdetr.files import make_directory
from nextdetr.identity import Identity
from nextdetr.inference.opened import bits_metadata
from nextdetr.weights.checkpoint import save_detector
from nextdetr.weights.layouts.table import DETECTOR_KIND
from nextdetr.weights.start import start_model

__all__ = ["FILE", "HeadResult", "HeadTrainer", "head_folder", "run_head"]

FILE = "detector.safetensors"
BATCH = 8
STEPS = 3000  # without --minutes and --head-epochs


@dataclass(frozen=True, slots=True)
class HeadResult:
    """Result of the head's pre-training.

    Attributes:
        epochs: epochs trained, over all sessions of the run.
        seconds: wall-clock time, over all sessions of the run.
        images: samples seen.
        loss: mean loss of the last epoch.
        weights: the detector's file.
    """

    epochs: int
    seconds: float
    images: int
    loss: float
    weights: str


def head_folder(directory: Path) -> Path:
    """Return the folder of the head's files, for a run in ``directory``."""
    return directory / "head"


def run_head(config: PretrainConfig, *, quiet: bool = False) -> HeadResult:
    """Pre-train the head in a run whose backbone is finished.

    Args:
        config: all settings of the run, with its folder as ``resume``.
        quiet: show no progress on standard error.

    Raises:
        NextDETRError: as for :func:`nextdetr.engine.pretrain.run_pretraining`.
    """
    started = time.perf_counter()
    with (
        launch(config, config, run_head) as fabric,
        Display(enabled=fabric.global_rank == 0 and not quiet) as display,
        ExitStack() as held,
    ):
        directory = Path(fabric.broadcast(str(run_folder(config, held)) if fabric.global_rank == 0 else ""))
        if fabric.global_rank == 0:
            make_directory(head_folder(directory))
        torch.manual_seed(config.seed)
        run = _prepare(config, directory, fabric, display)
        return HeadTrainer(run, config, fabric, display, started).run_head()


def _settings(config: PretrainConfig, images: int, world: int, model: str, stored: int | None = None) -> TrainConfig:
    """Return the settings of the head's training, as for a detector from random weights.

    Args:
        config: all settings of the run.
        images: number of images.
        world: number of processes.
        model: the detector.
        stored: epochs of a head that has begun, which keeps them on another number of processes.
    """
    batch = config.head_batch_size or BATCH
    epochs = config.head_epochs or stored
    if config.head_minutes is None and epochs is None:
        epochs = max(1, math.ceil(STEPS / math.ceil(images / (batch * world))))
        if config.epochs is not None and config.epochs < EPOCHS:  # chosen by the user, who wants the whole run short
            epochs = min(epochs, config.epochs)
    return TrainConfig(
        model=model, epochs=None if config.head_minutes is not None else epochs, minutes=config.head_minutes,
        image_size=head_size(config), batch_size=batch, seed=config.seed, learning_rate=RATE_OF.get(model, RATE),
        backbone_rate_factor=1.0, devices=config.devices, accelerator=config.accelerator, device=config.device,
        precision=config.precision, workers=config.workers, cache_gigabytes=config.cache_gigabytes, cache="shrunk",
        flip_horizontal=config.flip > 0, strong_until=1.0, log=config.log,
    )  # fmt: skip


def _prepare(config: PretrainConfig, directory: Path, fabric: Fabric, display: Display) -> Run:
    """Load images, model and state."""
    folder, model = head_folder(directory), detector_of(config)
    state_file = folder / "last.ckpt"
    cursor, state = read_state(state_file) if state_file.is_file() else (Cursor(), {})
    data = as_objects(images_of(config))
    started = start_model(model, classes=[OBJECT], backbone_weights=directory / "backbone.safetensors")
    settings = _settings(config, len(data.records), fabric.world_size, model, cursor.length[0])
    contract = Contract([OBJECT])
    if fabric.global_rank == 0:
        contract = Contract.of(data, together=settings.batch_size * fabric.world_size)
        tell_differences(contract, state, state_file, display.line)
        if state:  # otherwise the backbone's part has just written it
            write_config(config, directory)
    return Run(
        settings, folder, data, data, started.model, cursor, state, contract, started.origin, Identity(), None, None
    )  # fmt: skip


class HeadTrainer(ScoredByLoss, Trainer):
    """Second half of ``pretrain --detector``; see :func:`run_head`."""

    command = "pretrain"

    def __init__(
        self, run: Run, pretraining: PretrainConfig, fabric: Fabric, display: Display, started: float | None = None
    ) -> None:
        self.pretraining = pretraining
        super().__init__(run, fabric, display, started)

    @property
    def resume_folder(self) -> Path:
        """Folder of the whole run."""
        return self.directory.parent

    def build_loader(self, fabric: Fabric) -> TrainLoader:
        """Return this process's batches of composed samples."""
        config, run = self.config, self.run_
        assert config.image_size is not None
        sampler = EpochSampler(
            len(run.train_data.records), config.batch_size, seed=config.seed, base_size=config.image_size,
            multi_scale=training_sizes(config, run.model.stride), rank=fabric.global_rank, world=fabric.world_size,
        )  # fmt: skip
        transform = TrainTransform(AUGMENTATIONS[config.augmentation], flip_horizontal=config.flip_horizontal)
        dataset = ComposedDataset(
            run.train_data, transform, config.seed, compose=ComposeConfig(kind=self.pretraining.proposals),
            cache_bytes=int(config.cache_gigabytes * 2**30), shrink_to=shrink_limit(config.image_size),
        )  # fmt: skip
        return build_loader(dataset, sampler, workers=config.workers)

    def run_head(self) -> HeadResult:
        """Train until the budget is spent, and return the result."""
        config = self.config
        weights = self.directory.parent / FILE
        self.display.line(
            f"Pre-training the head of {config.model} at {self.image_size} px for {self.budget.length}, "
            f"{len(self.sampler)} steps an epoch, on objects without labels ({self.pretraining.proposals}); files in "
            f"{self.directory}"
        )
        with self.logs:
            self.run_epochs()
            seconds = self.finish(f"head of {config.model}", len(self.run_.train_data.records), weights)
            return HeadResult(self.cursor.epoch, round(seconds, 2), self.cursor.images, self.loss, str(weights))

    def extra_state(self) -> dict[str, Any]:
        """Return the last epoch's loss."""
        return {"pretraining": {"loss": self.loss}}

    def restore_extra(self, state: Mapping[str, Any]) -> None:
        """Restore ``extra_state``."""
        self.loss = state["pretraining"]["loss"]

    def write_files(self) -> None:
        """Write the detector with the averaged weights."""
        origin = self.run_.started_from
        save_detector(
            self.directory.parent / FILE, self.average.state_dict(), model_text=self.run_.model.text, classes=[OBJECT],
            image_size=self.image_size, weights_licence=origin.licence, source_weights=origin.file,
            data=self.run_.train_data.name,
            extra={"kind": DETECTOR_KIND, **bits_metadata(self.run_.train_data.reading.bits), **origin.taught},
        )  # fmt: skip
