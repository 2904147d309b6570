"""Masked pre-training of a backbone: its step and its files; the loop is ``engine/loop.py``.

"ConvNeXt V2", arXiv 2301.00808, section 3 and appendix A. The model is in ``models/fcmae.py``; the reasons for the default
settings are in ``engine/pretrain_setup.py``. Every length is a fraction of the run, which ``epochs`` or ``minutes`` define.
Masks are drawn for the whole batch over all processes, so they do not depend on the number of processes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from nextdetr.config import PretrainConfig, build_config
from nextdetr.data.loader import EpochSampler, build_loader
from nextdetr.data.unlabelled import UnlabelledDataset
from nextdetr.engine.budget import Budget
from nextdetr.engine.ema import ModelEMA
from nextdetr.engine.launch import launch, scaler_of
from nextdetr.engine.log import Display
from nextdetr.engine.optim import rate_factor, set_rate
from nextdetr.engine.pretrain_picture import Reconstructions
from nextdetr.engine.pretrain_setup import (
    Pretraining,
    build_pretraining_optimizer,
    head_size,
    prepare_pretraining,
    resolve_pretrain,
    run_folder,
    sufficient_side,
)
from nextdetr.engine.state import read_state
from nextdetr.engine.unlabelled_run import ScoredByLoss, origin_state
from nextdetr.errors import ConfigError, DataError
from nextdetr.inference.opened import bits_metadata
from nextdetr.memory import keep_freed_memory
from nextdetr.structures import Batch, Uncast
from nextdetr.weights.convert import save_backbone
from nextdetr.weights.layouts.table import FCMAE

__all__ = ["PretrainResult", "Pretrainer", "pretrain", "pretrain_all", "run_pretraining"]


@dataclass(frozen=True, slots=True)
class PretrainResult:
    """What ``pretrain`` returns; the fields of the JSON result.

    Attributes:
        output: the run's folder.
        epochs: epochs trained, over all sessions of the run.
        seconds: wall-clock time, over all sessions of the run.
        images_per_second: images per second of wall-clock time.
        loss: mean loss of the last epoch.
        weights: the backbone's file, for ``train --backbone-weights``; with ``detector`` the detector's, for ``--weights``.
        head: with ``detector``: ``epochs``, ``seconds`` and ``loss`` of the head; then ``epochs`` and ``loss`` above are
            the backbone's, ``seconds`` and ``images_per_second`` cover both. Otherwise None, and left out of the JSON.
    """

    output: str
    epochs: int
    seconds: float
    images_per_second: float
    loss: float
    weights: str
    head: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON result of the command."""
        return {
            "command": "pretrain",
            **{name: value for name, value in asdict(self).items() if name != "head" or value is not None},
        }


def pretrain(images: str | Path | Sequence[str | Path] = (), *, quiet: bool = False, **settings: Any) -> PretrainResult:
    """Pre-train a backbone on unlabelled images; with ``detector=True``, a whole detector.

    Args:
        images: a folder of images, a data set as for ``train`` (its training split is used), or several of these.
        quiet: show no progress on standard error.
        settings: the options of ``nextdetr pretrain`` as keywords (``model``, ``epochs``, ``minutes``, ``mask_ratio``, …).

    Raises:
        NextDETRError: see :func:`run_pretraining`.

    Example:
        >>> import nextdetr
        >>> weights = nextdetr.pretrain("photos", model="convnextv2-atto", minutes=30).weights
        >>> nextdetr.Detector("nextdetr-atto", backbone_weights=weights).train(data="labelled")
        >>> weights = nextdetr.pretrain("photos", model="nextdetr-atto", detector=True, minutes=30).weights
        >>> nextdetr.Detector("nextdetr-atto", weights=weights).train(data="labelled")
    """
    if images:
        settings["images"] = images
    return pretrain_all(build_config(PretrainConfig, settings), quiet=quiet)


def pretrain_all(config: PretrainConfig, *, quiet: bool = False) -> PretrainResult:
    """Pre-train a backbone and, with ``detector``, then the head; a resumed run continues with the part it had reached.

    Raises:
        NextDETRError: see :func:`run_pretraining`; also ConfigError if the head needs scikit-image, or if a run whose head
            has begun is given more epochs for its backbone, or one whose backbone is not finished no length for it.
    """
    whole = resolve_pretrain(config)
    if not whole.detector:
        return run_pretraining(config, quiet=quiet)
    from nextdetr.data.proposals import require_segmentation
    from nextdetr.engine.pretrain_head import head_folder, run_head

    # Report what the head lacks now rather than after the backbone.
    require_segmentation()
    head_size(whole)
    if config.resume is not None and (head_folder(config.resume) / "last.ckpt").is_file():
        backbone = _finished(config, config.resume)
    else:
        if config.resume is not None and whole.epochs is None and whole.minutes is None:
            raise ConfigError(
                f"--head-epochs replaces the --minutes of the run {config.resume}, whose backbone is not finished and "
                "would have no length: give --epochs too, or leave --head-epochs out."
            )
        backbone = run_pretraining(config, quiet=quiet)
    head = run_head(whole.model_copy(update={"resume": Path(backbone.output)}), quiet=quiet)
    seconds, images = backbone.seconds + head.seconds, backbone.images_per_second * backbone.seconds + head.images
    return replace(
        backbone, seconds=round(seconds, 2), images_per_second=round(images / max(1e-9, seconds), 3), weights=head.weights,
        head={"epochs": head.epochs, "seconds": head.seconds, "loss": head.loss},
    )  # fmt: skip


def _finished(config: PretrainConfig, directory: Path) -> PretrainResult:
    """Return the result of a backbone whose head has begun: the head started from it, so more training would be lost.

    Raises:
        ConfigError: more epochs are given for it.
        WeightsError: its state cannot be read.
    """
    if config.epochs is not None:
        raise ConfigError(
            f"--epochs is the length of the backbone's training, from which the head of the run {directory} has started: "
            "give --head-epochs or --minutes to continue with the head, or start a new run."
        )
    cursor, state = read_state(directory / "last.ckpt")
    return PretrainResult(
        str(directory), cursor.epoch, round(cursor.seconds, 2), round(cursor.images / max(1e-9, cursor.seconds), 3),
        float(state["pretraining"]["loss"]), str(directory / "backbone.safetensors"),
    )  # fmt: skip


def run_pretraining(config: PretrainConfig, *, quiet: bool = False) -> PretrainResult:
    """Pre-train a backbone.

    Args:
        config: all settings; see :class:`nextdetr.config.PretrainConfig`.
        quiet: show no progress on standard error.

    Raises:
        ConfigError: settings contradict each other or do not fit this machine.
        DataError: no image can be used.
        WeightsError: initial weights or a resumed state cannot be read.
        TrainingError: the loss or the weights are not finite.
        Interrupted: Ctrl-C or a request to terminate; a checkpoint was written.
    """
    started = time.perf_counter()
    given, config = config, resolve_pretrain(config)
    keep_freed_memory()
    with (
        launch(given, config, run_pretraining) as fabric,
        Display(enabled=fabric.global_rank == 0 and not quiet) as display,
        ExitStack() as held,
    ):
        directory = Path(fabric.broadcast(str(run_folder(config, held)) if fabric.global_rank == 0 else ""))
        torch.manual_seed(config.seed)
        run = prepare_pretraining(
            config, directory, display.line, cpu=fabric.device.type == "cpu", world=fabric.world_size,
            first=fabric.global_rank == 0,
        )  # fmt: skip
        return Pretrainer(run, fabric, display, started).run()


class Pretrainer(ScoredByLoss):
    """One run of pre-training; see :func:`run_pretraining`."""

    command = "pretrain"

    def __init__(self, run: Pretraining, fabric: Fabric, display: Display, started: float | None = None) -> None:
        self.run_, self.config = run, run.config
        config, cursor = self.config, run.cursor
        assert config.batch_size is not None
        assert config.learning_rate is not None
        sampler = EpochSampler(
            len(run.data.records), config.batch_size, seed=config.seed, base_size=config.image_size,
            rank=fabric.global_rank, world=fabric.world_size,
        )  # fmt: skip
        dataset = UnlabelledDataset(
            run.data, config.seed, crop_min=config.crop_min, flip=config.flip,
            cache_bytes=int(config.cache_gigabytes * 2**30), shrink_to=sufficient_side(config),
        )  # fmt: skip
        optimizer = build_pretraining_optimizer(
            run.model, config.learning_rate, config.weight_decay, fused=scaler_of(fabric) is None
        )
        super().__init__(
            config=config, fabric=fabric, display=display, directory=run.directory, cursor=cursor,
            budget=Budget.of(
                config.epochs, config.backbone_minutes, len(sampler) * sampler.places, spent=cursor.seconds, started=started
            ),
            loader=build_loader(dataset, sampler, workers=config.workers), model=run.model, optimizer=optimizer,
            ema=ModelEMA(run.model.encoder.to(fabric.device), config.ema_decay) if config.ema_decay > 0 else None,
            contract=run.contract,
        )  # fmt: skip
        self.pictures = Reconstructions(dataset, config.image_size, config.patch_size, self.directory / "pictures")
        self.drawn_at = -1.0
        self.restore(run.state)

    def restore_extra(self, state: Mapping[str, Any]) -> None:
        """Restore ``extra_state``."""
        self.loss, self.drawn_at = (float(state["pretraining"][name]) for name in ("loss", "drawn_at"))

    def run(self) -> PretrainResult:
        """Train until the budget is spent, and return the result."""
        config = self.config
        self.display.line(
            f"Pre-training {'the backbone of ' * config.detector}{config.model} at {config.image_size} px for "
            f"{self.budget.length}, {len(self.sampler)} steps an epoch, batch {self.sampler.places}, "
            f"learning rate {config.learning_rate:.2e}, on {self.fabric.device}; run folder {self.directory}"
        )
        with self.logs:
            self.run_epochs()
            return self._finish()

    def step(self, batch: Batch, progress: float, last: bool) -> dict[str, float]:
        """Train on a batch and return its loss."""
        cursor, config = self.cursor, self.config
        cursor.rate = set_rate(self.optimizer, rate_factor(progress, cursor.step, warmup=config.warmup, flat=0.0))
        self.model.train()
        loss = self.model(Uncast(batch.images), Uncast(self._noise(len(batch.indices))))
        self.fabric.backward(loss)
        values = self.mean({"loss": loss})
        if not math.isfinite(values["loss"]):
            raise self.diverged(self.run_.data.records, batch)
        self.apply_gradients(config.clip_norm)
        if self.ema is not None:
            self.ema.update(self.run_.model.encoder)
        return values

    def _noise(self, images: int) -> Tensor:
        """Random numbers for the masks of this step [B, patches]: a function of seed, step and position in the batch."""
        config, fabric = self.config, self.fabric
        generator = torch.Generator().manual_seed(self.seed_of_step(config.seed, 0))
        patches = (config.image_size // config.patch_size) ** 2
        noise = torch.rand(images * fabric.world_size, patches, generator=generator)
        first = fabric.global_rank * images
        return noise[first : first + images].to(fabric.device)

    # Between epochs

    def after_epoch(self, number: int) -> None:
        """Draw reconstructions of a few images, ten times per run."""
        every = self.config.picture_every
        if number % every == 0 if every is not None else self.budget.progress(number, 0) >= self.drawn_at + 0.1:
            self._picture()

    def _picture(self) -> None:
        self.drawn_at = self.budget.progress(self.cursor.epoch, 0)
        if self.main:
            try:
                self.pictures.draw(self.run_.model, self.cursor.epoch, self.config.seed)
            except DataError as error:  # the run may not need this image again
                self.display.line(f"{error} The picture of reconstructions is left out.")

    # Writing

    def extra_state(self) -> dict[str, Any]:
        """Return the last epoch's loss, the epoch of the last picture, and the origin of the weights."""
        return {
            "pretraining": {"loss": self.loss, "drawn_at": self.drawn_at},
            **origin_state(self.run_.started_from),
        }

    def write_files(self) -> None:
        """Write the backbone's file."""
        encoder = self.run_.model.encoder if self.ema is None else self.ema.module
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
        origin = self.run_.started_from
        save_backbone(
            self.directory / "backbone.safetensors", state, weights_licence=origin.licence, source_weights=origin.file,
            pretraining=FCMAE, **bits_metadata(self.run_.data.reading.bits), **origin.taught,
        )  # fmt: skip

    def _finish(self) -> PretrainResult:
        cursor = self.cursor
        if self.unsaved:
            self.save()
        self._picture()
        weights = self.directory / "backbone.safetensors"
        seconds = self.finish(self.config.model, len(self.run_.data.records), weights)
        return PretrainResult(
            str(self.directory), cursor.epoch, round(seconds, 2), round(cursor.images / max(1e-9, seconds), 3),
            self.loss, str(weights),
        )  # fmt: skip
