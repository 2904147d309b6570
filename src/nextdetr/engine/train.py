"""Training of a detector: the loop, what it keeps, and how it stops.

The recipe is RT-DETR's (arXiv 2304.08069, section 5.1) with a flat-then-cosine rate (DEIM, arXiv 2412.04234); every length
in it is a share of the run, which is as long as ``epochs`` or ``minutes`` say.
"""

from __future__ import annotations

import math
import threading
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from nextdetr.config import TrainConfig
from nextdetr.engine.budget import Budget
from nextdetr.engine.curves import draw_curves
from nextdetr.engine.diagnosis import non_finite
from nextdetr.engine.ema import ModelEMA
from nextdetr.engine.launch import largest, launch, scaler_of
from nextdetr.engine.loading import build_training_loader
from nextdetr.engine.log import Display, MetricsTable, TensorBoard, clock, epoch_line, shown_score
from nextdetr.engine.optim import build_optimizer, rate_factor, set_rate
from nextdetr.engine.profile import StepProfile
from nextdetr.engine.setup import Run, data_name, prepare, resolve_config
from nextdetr.engine.state import step_seed, write_state
from nextdetr.engine.stopping import stop_on_signal
from nextdetr.engine.validate import validate
from nextdetr.errors import Interrupted
from nextdetr.inference.drawing import draw_batch
from nextdetr.layers.syncnorm import synchronize_norms
from nextdetr.losses.criterion import Criterion
from nextdetr.losses.matcher import HungarianMatcher
from nextdetr.memory import keep_freed_memory
from nextdetr.structures import Batch, UncastTargets
from nextdetr.weights.checkpoint import save_detector

__all__ = ["TrainResult", "train"]

SAVE_EVERY = 60.0  # seconds between writes of last.ckpt, so that short epochs do not spend their time on the disk


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What ``train`` returns; the fields of the JSON result.

    Attributes:
        output: the run's folder.
        epochs: epochs trained, all sessions of the run.
        seconds: wall-clock, all sessions of the run.
        images_per_second: training images by wall-clock, validation included.
        best: ``epoch`` and ``metrics`` of the best validation.
        checkpoint: file with the best weights.
        profile: with ``--profile``: ``steps`` measured, seconds a ``step``, and of its ``parts``; else None, and not shown.
    """

    output: str
    epochs: int
    seconds: float
    images_per_second: float
    best: dict[str, Any]
    checkpoint: str
    profile: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON result of the command."""
        values = {name: value for name, value in asdict(self).items() if name != "profile" or value is not None}
        return {"command": "train", **values}


def train(config: TrainConfig, *, quiet: bool = False) -> TrainResult:
    """Train a detector.

    Args:
        config: all settings; see :class:`nextdetr.config.TrainConfig`.
        quiet: show no progress on standard error.

    Raises:
        ConfigError: settings that contradict each other or this machine.
        DataError: a data set that cannot be used.
        ModelFileError: a model file that cannot be built.
        WeightsError: initial weights or a resumed state that cannot be read.
        TrainingError: the loss is not finite.
        Interrupted: Ctrl-C or a request to terminate, after a checkpoint was written.
    """
    config = resolve_config(config)
    keep_freed_memory()
    fabric = launch(config.accelerator, config.devices, config.precision)
    with Display(enabled=fabric.global_rank == 0 and not quiet) as display:
        return Trainer(prepare(config, fabric, display.line), fabric, display).run()


class Trainer:
    """One run of training; see :func:`train`."""

    def __init__(self, run: Run, fabric: Fabric, display: Display) -> None:
        self.run_, self.config, self.fabric, self.display = run, run.config, fabric, display
        self.cursor, self.directory = run.cursor, run.directory
        config = self.config
        assert config.image_size is not None
        self.image_size = config.image_size
        self.loader = build_training_loader(
            config, run.train_data, stride=run.model.stride, rank=fabric.global_rank, world=fabric.world_size
        )
        self.sampler = self.loader.sampler
        assert config.backbone_rate_factor is not None
        optimizer = build_optimizer(
            run.model, learning_rate=config.learning_rate, weight_decay=config.weight_decay,
            backbone_factor=config.backbone_rate_factor, layer_decay=config.layer_decay,
            fused=scaler_of(fabric) is None,
        )  # fmt: skip
        if fabric.world_size > 1:
            synchronize_norms(run.model)
        self.ema = ModelEMA(run.model.to(fabric.device), config.ema_decay)
        self.model, self.optimizer = fabric.setup(run.model, optimizer)
        matcher = HungarianMatcher()
        self.criterion = Criterion(
            len(run.train_data.classes), matcher, class_loss=config.class_loss,
            fine_grained_weight=config.fine_grained_weight, distillation_weight=config.distillation_weight,
            dense_weight=config.dense_weight,
        )  # fmt: skip
        self.profile = StepProfile(config.profile, fabric.device)
        matcher.match = self.profile.wrap(matcher.match, "matcher")  # type: ignore[method-assign]
        self.budget = Budget.of(config.epochs, config.minutes, len(self.sampler), self.cursor.seconds)
        self.stop_requested = threading.Event()
        self.saved_at = 0.0
        self.last_metrics: dict[str, float | None] = {}
        self._restore()

    def _restore(self) -> None:
        state = self.run_.state
        if state:
            self.run_.model.load_state_dict(state["model"])
            self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            scaler = scaler_of(self.fabric)
            if scaler is not None and state["scaler"]:
                scaler.load_state_dict(state["scaler"])

    # The whole run

    def run(self) -> TrainResult:
        """Train until the budget is spent, and return what came of it."""
        self.tensorboard = TensorBoard(self.directory) if self.main else None
        self.table: MetricsTable | None = None
        if self.main and self.tensorboard is not None and not self.tensorboard.available:
            self.display.line("No TensorBoard events: the package is not installed (pip install 'nextdetr[logging]').")
        self.display.line(
            f"Training {self.config.model} at {self.image_size} px on {self.fabric.device}; run folder {self.directory}"
        )
        with stop_on_signal(self.stop_requested, self.display):
            while not self._finished():
                self._epoch()
        if self.cursor.validated_at == 0.0 or self.cursor.best_epoch < 0:
            self._validate()
        return self._finish()

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return bool(self.fabric.global_rank == 0)

    def _finished(self) -> bool:
        patience = self.config.patience
        early = patience is not None and self.cursor.stale >= patience
        return early or self._over()

    def _over(self) -> bool:
        return self._shared(self.budget.progress(self.cursor.epoch, self.cursor.batch)) >= 1.0

    def _shared(self, value: float) -> float:
        return largest(self.fabric, value)[0]

    def _epoch(self) -> None:
        cursor, budget = self.cursor, self.budget
        progress = self._shared(budget.progress(cursor.epoch, 0 if budget.minutes is None else cursor.batch))
        strong = progress < self.config.strong_until
        if self.fabric.world_size == 1:  # saves the gradient; DDP has decided already which ones it waits for
            self._backbone.requires_grad_(not self._frozen)
        started, images = budget.seconds, cursor.images
        for batch in self.profile.batches(self.loader.epoch(cursor.epoch, start_batch=cursor.batch, strong=strong)):
            self._step(batch.to(self.fabric.device))
            if budget.minutes is not None and self._over():
                break
            if self._shared(self.stop_requested.is_set()) and self._at_boundary():
                self._stop()
        pace = (cursor.images - images) / max(1e-9, budget.seconds - started)
        self._end_epoch(pace)

    def _step(self, batch: Batch) -> None:
        cursor, config, part = self.cursor, self.config, self.profile.part
        if cursor.epoch == 0 and cursor.batch == 0:
            self._picture(batch)
        progress = self._shared(self.budget.progress(cursor.epoch, cursor.batch))
        factor = rate_factor(progress, cursor.step, warmup=config.warmup, flat=config.flat)
        cursor.rate = set_rate(self.optimizer, factor, frozen=self._frozen)
        torch.manual_seed(step_seed(config.seed, cursor.epoch * len(self.sampler) + cursor.batch, self.fabric.global_rank))
        last = self._at_boundary(cursor.batch + 1)
        self.model.train()
        if self._frozen:  # nor may its BatchNorms follow the batches
            self._backbone.eval()
        with self.fabric.no_backward_sync(self.model, enabled=not last):
            with part("forward"):
                output = self.model(batch.images, UncastTargets(batch.targets))
            with part("losses"):
                terms = self.criterion(output, batch.targets)
                loss = torch.stack(list(terms.values())).sum()
            with part("backward"):
                self.fabric.backward(loss / config.accumulate)
        values = self._means({"loss": loss, **terms})
        if not math.isfinite(values["loss"]):
            names = [self.run_.train_data.records[index].path.name for index in batch.indices]
            raise non_finite(self.run_.model, terms, names, cursor, self.directory)
        if last:
            with part("optimiser"):
                if self._frozen:  # with several processes DDP has made gradients of the backbone all the same
                    for parameter in self._backbone.parameters():
                        parameter.grad = None
                if config.clip_norm > 0:
                    self.fabric.clip_gradients(
                        self.model, self.optimizer, max_norm=config.clip_norm, error_if_nonfinite=False
                    )
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
            with part("ema"):
                self.ema.update(self.run_.model)
            cursor.step += 1
        self._count(values, len(batch.indices) * self.fabric.world_size)

    @property
    def _backbone(self) -> nn.ModuleList:
        return self.run_.model.rows[: self.run_.model.backbone_rows]

    @property
    def _frozen(self) -> bool:
        return self.cursor.epoch < self.config.freeze_backbone_epochs

    def _at_boundary(self, batch: int | None = None) -> bool:
        """Whether the optimiser moves after so many batches of the epoch."""
        batch = self.cursor.batch if batch is None else batch
        return batch % self.config.accumulate == 0 or batch >= len(self.sampler)

    def _means(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Return the means over all processes, so that all of them see the same loss, and stop at the same step."""
        stacked = torch.stack([value.detach() for value in values.values()])
        if self.fabric.world_size > 1:
            stacked = self.fabric.all_reduce(stacked, reduce_op="mean")  # type: ignore[assignment]
        return dict(zip(values, stacked.tolist(), strict=True))

    def _count(self, values: dict[str, float], images: int) -> None:
        cursor = self.cursor
        for name, value in values.items():
            cursor.sums[name] = cursor.sums.get(name, 0.0) + value
        cursor.counted += 1
        cursor.batch += 1
        cursor.images += images
        if table := self.profile.step():
            self.display.line(table)
        left = self.budget.remaining_seconds(cursor.epoch, cursor.batch)
        epochs = self.budget.estimated_epochs(cursor.epoch, cursor.batch)
        self.display.update(
            f"epoch {cursor.epoch + 1}/{epochs}",
            self.budget.progress(cursor.epoch, cursor.batch),
            f"loss {values['loss']:.3f}  step {cursor.step}  "
            f"{cursor.images / max(1e-9, self.budget.seconds):.1f} images/s  left {clock(left)}",
        )

    # What happens between epochs

    def _end_epoch(self, pace: float) -> None:
        cursor, budget = self.cursor, self.budget
        number = cursor.epoch + 1
        epochs = max(number, budget.estimated_epochs(cursor.epoch, cursor.batch))
        metrics = self._validate() if self._validation_due(number) else {}
        means = {name: value / max(1, cursor.counted) for name, value in cursor.sums.items()}
        row = {
            "epoch": number,
            "step": cursor.step,
            "seconds": budget.seconds,
            "learning_rate": cursor.rate,
            **means,
            **metrics,
        }
        if self.main:
            self.table = self.table or MetricsTable(
                self.directory / "metrics.csv", [name for name in means if name != "loss"], cursor.epoch
            )
            self.table.add(row)
            if self.tensorboard is not None:
                self.tensorboard.add({k: v for k, v in row.items() if k not in ("epoch", "step")}, cursor.step)
        self.display.line(epoch_line(number, epochs, row, pace, budget.remaining_seconds(cursor.epoch, cursor.batch)))
        cursor.epoch, cursor.batch, cursor.sums, cursor.counted = number, 0, {}, 0
        if self._shared(budget.seconds - self.saved_at) >= SAVE_EVERY or self._finished():
            self._save()

    def _validation_due(self, number: int) -> bool:
        if self._shared(self.budget.progress(number, 0)) >= 1.0:
            return True
        if self.config.val_every is not None:
            return number % self.config.val_every == 0
        since = self.budget.seconds - self.cursor.validated_at
        return self._shared(since - 10 * self.cursor.validation_seconds) >= 0

    def _validate(self) -> dict[str, float | None]:
        cursor, started = self.cursor, self.budget.seconds
        self.display.update("validating", self.budget.progress(cursor.epoch, cursor.batch), "")
        result = validate(
            self.ema.module, self.run_.val_data, image_size=self.image_size, batch_size=self.config.batch_size,
            device=self.fabric.device, fabric=self.fabric,
        )  # fmt: skip
        metrics = result.metrics
        score, best = metrics["AP"] or 0.0, cursor.best_metrics.get("AP") or 0.0
        if cursor.best_epoch < 0 or score > best:
            cursor.best_epoch, cursor.best_metrics, cursor.stale = cursor.epoch + 1, dict(metrics), 0
            if self.main:
                self._write_detector("best.safetensors", metrics)
        else:
            cursor.stale += 1
        cursor.validated_at = self.budget.seconds
        cursor.validation_seconds = self.budget.seconds - started
        self.budget.reserve = 1.1 * cursor.validation_seconds
        self.last_metrics = metrics
        return dict(metrics)

    # What is written

    def _write_detector(self, name: str, metrics: dict[str, float | None]) -> None:
        licence, source = self.run_.started_from
        save_detector(
            self.directory / name, self.ema.module.state_dict(), model_text=self.run_.model.text,
            classes=self.run_.train_data.classes, image_size=self.image_size, metrics=metrics,
            weights_licence=licence, source_weights=source, data=data_name(self.run_.config),
            extra=self.run_.identity.to_metadata(),
        )  # fmt: skip

    def _save(self) -> None:
        self.cursor.seconds = self.saved_at = self.budget.seconds
        if self.main:
            scaler = scaler_of(self.fabric)
            write_state(
                self.directory / "last.ckpt", self.cursor, model=self.run_.model.state_dict(), ema=self.ema.state_dict(),
                optimizer=self.optimizer.state_dict(), scaler={} if scaler is None else scaler.state_dict(),
            )  # fmt: skip
            self._write_detector("last.safetensors", self.last_metrics)
        self.fabric.barrier()

    def _picture(self, batch: Batch) -> None:
        if self.main:
            from nextdetr.files import atomic_write

            picture = draw_batch(batch.images.cpu(), [t.to("cpu") for t in batch.targets], self.run_.train_data.classes)
            with atomic_write(self.directory / "pictures" / "training_batch.jpg") as temporary:
                picture.save(temporary, quality=90)

    def _finish(self) -> TrainResult:
        cursor = self.cursor
        self._save()
        seconds = self.budget.seconds
        if self.main:
            draw_curves(self.directory / "metrics.csv", self.directory / "pictures" / "curves.png")
            if self.tensorboard is not None:
                self.tensorboard.close()
        best = {"epoch": cursor.best_epoch, "metrics": cursor.best_metrics}
        checkpoint = self.directory / "best.safetensors"
        self.display.line(
            f"Done in {clock(seconds)}: best AP {shown_score(cursor.best_metrics.get('AP'))} in epoch "
            f"{cursor.best_epoch}; weights in {checkpoint}"
        )
        if self.profile.enabled:
            self.display.line(self.profile.table())
        return TrainResult(
            str(self.directory),
            cursor.epoch,
            round(seconds, 2),
            round(cursor.images / max(1e-9, seconds), 3),
            best,
            str(checkpoint),
            self.profile.result(),
        )

    # How it stops early

    def _stop(self) -> None:
        self._save()
        raise Interrupted(
            f"stopped in epoch {self.cursor.epoch + 1} after {self.cursor.step} steps; go on with: "
            f"nextdetr train --resume {self.directory}"
        )
