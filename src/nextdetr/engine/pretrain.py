"""Masked pre-training of a backbone: the loop, what it keeps, and how it stops.

"ConvNeXt V2", arXiv 2301.00808, section 3 and appendix A; the model is in ``models/fcmae.py``, the settings' defaults are
reasoned in ``engine/pretrain_setup.py``. Every length is a share of the run, which is as long as ``epochs`` or ``minutes``
say. Masks are drawn for the whole batch of all processes, so that they do not depend on how many processes there are.
"""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from nextdetr.config import PretrainConfig, build_config
from nextdetr.data.loader import EpochSampler, build_loader
from nextdetr.data.unlabelled import UnlabelledDataset
from nextdetr.engine.budget import Budget
from nextdetr.engine.curves import draw_loss
from nextdetr.engine.ema import ModelEMA
from nextdetr.engine.launch import largest, launch, scaler_of
from nextdetr.engine.log import Display, MetricsTable, TensorBoard, clock, epoch_line
from nextdetr.engine.optim import rate_factor, set_rate
from nextdetr.engine.pretrain_picture import Reconstructions
from nextdetr.engine.pretrain_setup import (
    Pretraining,
    build_pretraining_optimizer,
    prepare_pretraining,
    resolve_pretrain,
    run_folder,
    sufficient_side,
)
from nextdetr.engine.state import step_seed, write_state
from nextdetr.engine.stopping import stop_on_signal
from nextdetr.errors import DataError, Interrupted, TrainingError
from nextdetr.memory import keep_freed_memory
from nextdetr.structures import Batch
from nextdetr.weights.convert import save_backbone
from nextdetr.weights.layouts.table import FCMAE

__all__ = ["PretrainResult", "Pretrainer", "pretrain", "run_pretraining"]

SAVE_EVERY = 60.0  # seconds between writes of last.ckpt


@dataclass(frozen=True, slots=True)
class PretrainResult:
    """What ``pretrain`` returns; the fields of the JSON result.

    Attributes:
        output: the run's folder.
        epochs: epochs trained, all sessions of the run.
        seconds: wall-clock, all sessions of the run.
        images_per_second: images by wall-clock.
        loss: mean loss of the last epoch.
        weights: the backbone's file, for ``train --backbone-weights``.
    """

    output: str
    epochs: int
    seconds: float
    images_per_second: float
    loss: float
    weights: str

    def to_json(self) -> dict[str, Any]:
        """Return the JSON result of the command."""
        return {"command": "pretrain", **asdict(self)}


def pretrain(images: str | Path | Sequence[str | Path] = (), *, quiet: bool = False, **settings: Any) -> PretrainResult:
    """Pre-train a backbone on images without labels.

    Args:
        images: a folder of images, a data set as ``train`` takes it (its training split is used), or several of these.
        quiet: show no progress on standard error.
        settings: the options of ``nextdetr pretrain`` as keywords (``model``, ``epochs``, ``minutes``, ``mask_ratio``, …).

    Raises:
        NextDETRError: see :func:`run_pretraining`.

    Example:
        >>> import nextdetr
        >>> weights = nextdetr.pretrain("photos", model="convnextv2-atto", minutes=30).weights
        >>> nextdetr.Detector("nextdetr-atto", backbone_weights=weights).train(data="labelled")
    """
    if images:
        settings["images"] = images
    return run_pretraining(build_config(PretrainConfig, settings), quiet=quiet)


def run_pretraining(config: PretrainConfig, *, quiet: bool = False) -> PretrainResult:
    """Pre-train a backbone.

    Args:
        config: all settings; see :class:`nextdetr.config.PretrainConfig`.
        quiet: show no progress on standard error.

    Raises:
        ConfigError: settings that contradict each other or this machine.
        DataError: there is no image that can be used.
        WeightsError: initial weights or a resumed state that cannot be read.
        TrainingError: the loss is not finite.
        Interrupted: Ctrl-C or a request to terminate, after a checkpoint was written.
    """
    config = resolve_pretrain(config)
    keep_freed_memory()
    fabric = launch(config.accelerator, config.devices, config.precision)
    with Display(enabled=fabric.global_rank == 0 and not quiet) as display:
        directory = Path(fabric.broadcast(str(run_folder(config)) if fabric.global_rank == 0 else ""))
        torch.manual_seed(config.seed)
        run = prepare_pretraining(
            config, directory, display.line, cpu=fabric.device.type == "cpu", world=fabric.world_size
        )  # fmt: skip
        return Pretrainer(run, fabric, display).run()


class Pretrainer:
    """One run of pre-training; see :func:`run_pretraining`."""

    def __init__(self, run: Pretraining, fabric: Fabric, display: Display) -> None:
        self.run_, self.config, self.fabric, self.display = run, run.config, fabric, display
        self.cursor, self.directory = run.cursor, run.directory
        config = self.config
        assert config.batch_size is not None
        assert config.learning_rate is not None
        self.batch_size = config.batch_size
        self.sampler = EpochSampler(
            len(run.data.records), config.batch_size, seed=config.seed, base_size=config.image_size,
            rank=fabric.global_rank, world=fabric.world_size,
        )  # fmt: skip
        self.dataset = UnlabelledDataset(
            run.data, config.seed, crop_min=config.crop_min, flip=config.flip,
            cache_bytes=int(config.cache_gigabytes * 2**30), shrink_to=sufficient_side(config),
        )  # fmt: skip
        self.loader = build_loader(self.dataset, self.sampler, workers=config.workers)
        optimizer = build_pretraining_optimizer(
            run.model, config.learning_rate, config.weight_decay, fused=scaler_of(fabric) is None
        )
        self.ema = ModelEMA(run.model.encoder.to(fabric.device), config.ema_decay) if config.ema_decay > 0 else None
        self.model, self.optimizer = fabric.setup(run.model, optimizer)
        self.budget = Budget.of(config.epochs, config.minutes, len(self.sampler), self.cursor.seconds)
        self.pictures = Reconstructions(self.dataset, config.image_size, config.patch_size, self.directory / "pictures")
        self.drawn_at = self.budget.progress(self.cursor.epoch, 0) if self.cursor.step else -1.0
        self.stop_requested = threading.Event()
        self.saved_at = 0.0
        self.loss = math.nan
        self._restore()

    def _restore(self) -> None:
        state = self.run_.state
        if state:
            if state["progress"].get("given", self._given()) != self._given():
                self.display.line(
                    "The images, or how many are a step, are not those of the run so far: it goes on with them, but not as "
                    "it would have gone on."
                )
            self.run_.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.loss = state["progress"]["loss"]
            self.drawn_at = state["progress"]["drawn_at"]
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            scaler = scaler_of(self.fabric)
            if scaler is not None and state["scaler"]:
                scaler.load_state_dict(state["scaler"])

    def _given(self) -> str:
        """What an exact resume needs to be the same."""
        names = "\n".join(str(record.path.absolute()) for record in self.run_.data.records)
        digest = zlib.crc32(names.encode("utf-8", "surrogateescape"))
        return f"images {digest:08x}, {self.batch_size * self.fabric.world_size} a step"

    # The whole run

    def run(self) -> PretrainResult:
        """Train until the budget is spent, and return what came of it."""
        config = self.config
        self.tensorboard = TensorBoard(self.directory) if self.main else None
        self.table: MetricsTable | None = None
        length = f"{config.minutes:g} minutes" if config.minutes is not None else f"{config.epochs} epochs"
        self.display.line(
            f"Pre-training {config.model} at {config.image_size} px for {length}, {len(self.sampler)} steps an epoch, "
            f"batch {self.batch_size * self.fabric.world_size}, rate {config.learning_rate:.2e}, on {self.fabric.device}; "
            f"run folder {self.directory}"
        )
        with stop_on_signal(self.stop_requested, self.display):
            while self.cursor.step == 0 or self._progress()[0] < 1.0:
                self._epoch()
        if self.cursor.counted:  # resumed in mid-epoch, with no time left to end it
            self._end_epoch(0.0)
        return self._finish()

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return bool(self.fabric.global_rank == 0)

    def _progress(self) -> tuple[float, bool]:
        """Share of the run that is over, and whether to stop; the same on all processes, whose clocks differ."""
        progress = self.budget.progress(self.cursor.epoch, self.cursor.batch)
        progress, stop = largest(self.fabric, progress, self.stop_requested.is_set())
        return progress, bool(stop)

    def _epoch(self) -> None:
        cursor, budget = self.cursor, self.budget
        started, images = budget.seconds, cursor.images
        try:
            for batch in self.loader.epoch(cursor.epoch, start_batch=cursor.batch):
                progress, stop = self._progress()
                if stop:
                    self._stop()
                if progress >= 1.0 and cursor.step:
                    break
                self._step(batch.to(self.fabric.device), progress)
                inside = cursor.batch < len(self.sampler)
                if inside and budget.seconds - self.saved_at >= SAVE_EVERY:  # an epoch may take hours
                    self._save()
        except DataError:  # an image that is gone or damaged since the start must not cost what was learnt
            self._save()
            raise
        self._end_epoch((cursor.images - images) / max(1e-9, budget.seconds - started))

    def _step(self, batch: Batch, progress: float) -> None:
        cursor, config = self.cursor, self.config
        cursor.rate = set_rate(self.optimizer, rate_factor(progress, cursor.step, warmup=config.warmup, flat=0.0))
        self.model.train()
        loss = self.model(batch.images, self._noise(len(batch.indices)))
        self.fabric.backward(loss)
        value = self._mean(loss.detach())  # the same on all processes, so that they stop together
        if not math.isfinite(value):
            raise self._non_finite(batch)
        if config.clip_norm > 0:
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=config.clip_norm, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.run_.model.encoder)
        cursor.step += 1
        self._count(value, len(batch.indices) * self.fabric.world_size)

    def _noise(self, images: int) -> Tensor:
        """What decides the masks of this step's images [B, patches]: a function of seed, step and place in the batch."""
        config, fabric = self.config, self.fabric
        step = self.cursor.epoch * len(self.sampler) + self.cursor.batch
        generator = torch.Generator().manual_seed(step_seed(config.seed, step, 0))
        patches = (config.image_size // config.patch_size) ** 2
        noise = torch.rand(images * fabric.world_size, patches, generator=generator)
        first = fabric.global_rank * images
        return noise[first : first + images].to(fabric.device)

    def _count(self, loss: float, images: int) -> None:
        cursor = self.cursor
        cursor.sums["loss"] = cursor.sums.get("loss", 0.0) + loss
        cursor.counted += 1
        cursor.batch += 1
        cursor.images += images
        left = self.budget.remaining_seconds(cursor.epoch, cursor.batch)
        epochs = self.budget.estimated_epochs(cursor.epoch, cursor.batch)
        self.display.update(
            f"epoch {cursor.epoch + 1}/{epochs}",
            self.budget.progress(cursor.epoch, cursor.batch),
            f"loss {loss:.4f}  step {cursor.step}  {cursor.images / max(1e-9, self.budget.seconds):.1f} images/s  "
            f"left {clock(left)}",
        )

    # What happens between epochs

    def _end_epoch(self, pace: float) -> None:
        cursor, budget = self.cursor, self.budget
        if not cursor.counted:  # the time was up before the first step
            return
        number = cursor.epoch + 1
        epochs = max(number, budget.estimated_epochs(cursor.epoch, cursor.batch))
        self.loss = cursor.sums["loss"] / cursor.counted
        row: dict[str, Any] = {
            "epoch": number, "step": cursor.step, "seconds": budget.seconds, "learning_rate": cursor.rate,
            "loss": self.loss,
        }  # fmt: skip
        if self.main:
            self.table = self.table or MetricsTable(self.directory / "metrics.csv", [], cursor.epoch, metrics=())
            self.table.add(row)
            if self.tensorboard is not None:
                values = {name: value for name, value in row.items() if name not in ("epoch", "step")}
                self.tensorboard.add(values, cursor.step)
        left = budget.remaining_seconds(cursor.epoch, cursor.batch)
        self.display.line(epoch_line(number, epochs, row, pace, left))
        cursor.epoch, cursor.batch, cursor.sums, cursor.counted = number, 0, {}, 0
        if budget.seconds - self.saved_at >= SAVE_EVERY:
            self._save()
        if self._picture_due(number):
            self._picture()

    def _mean(self, loss: Tensor) -> float:
        """The loss of the images of all processes, each of which has as many."""
        if self.fabric.world_size == 1:
            return float(loss)
        agreed = self.fabric.all_reduce(loss.double(), reduce_op="mean")
        assert isinstance(agreed, Tensor)
        return float(agreed)

    def _picture_due(self, number: int) -> bool:
        if self.config.picture_every is not None:
            return number % self.config.picture_every == 0
        return self.budget.progress(number, 0) >= self.drawn_at + 0.1

    def _picture(self) -> None:
        self.drawn_at = self.budget.progress(self.cursor.epoch, 0)
        if self.main:
            self.pictures.draw(self.run_.model, self.cursor.epoch, self.config.seed)

    # What is written

    def _save(self) -> None:
        self.cursor.seconds = self.saved_at = self.budget.seconds
        if self.main:
            scaler = scaler_of(self.fabric)
            write_state(
                self.directory / "last.ckpt", self.cursor, model=self.run_.model.state_dict(),
                optimizer=self.optimizer.state_dict(), ema={} if self.ema is None else self.ema.state_dict(),
                scaler={} if scaler is None else scaler.state_dict(),
                progress={"loss": self.loss, "drawn_at": self.drawn_at, "given": self._given()},
                started_from=dict(zip(("licence", "file"), self.run_.started_from, strict=True)),
            )  # fmt: skip
            self._write_backbone()

    def _write_backbone(self) -> Path:
        encoder = self.run_.model.encoder if self.ema is None else self.ema.module
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
        licence, source = self.run_.started_from
        return save_backbone(
            self.directory / "backbone.safetensors", state, weights_licence=licence, source_weights=source,
            pretraining=FCMAE,
        )  # fmt: skip

    def _finish(self) -> PretrainResult:
        cursor = self.cursor
        self._save()
        self._picture()
        self.fabric.barrier()
        self.loader.close()
        seconds, weights = self.budget.seconds, self.directory / "backbone.safetensors"
        if self.main:
            title = f"{self.config.model}, {len(self.run_.data.records):,} images"
            draw_loss(self.directory / "metrics.csv", self.directory / "pictures" / "curves.png", title)
            if self.tensorboard is not None:
                self.tensorboard.close()
        self.display.line(f"Done in {clock(seconds)}: loss {self.loss:.4f}; weights in {weights}")
        return PretrainResult(
            str(self.directory), cursor.epoch, round(seconds, 2), round(cursor.images / max(1e-9, seconds), 3),
            self.loss, str(weights),
        )  # fmt: skip

    # How it stops early

    def _stop(self) -> None:
        self._save()
        raise Interrupted(
            f"stopped in epoch {self.cursor.epoch + 1} after {self.cursor.step} steps; go on with: "
            f"nextdetr pretrain --resume {self.directory}"
        )

    def _non_finite(self, batch: Batch) -> TrainingError:
        images = [self.run_.data.records[index].path.name for index in batch.indices]
        return TrainingError(
            f"the loss is not finite in epoch {self.cursor.epoch + 1}, step {self.cursor.step + 1} (images "
            f"{', '.join(images)}). Lower --learning-rate, or use --precision 32-true; {self.directory / 'last.ckpt'} is "
            "as it was."
        )
