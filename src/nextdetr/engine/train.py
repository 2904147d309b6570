"""Training of a detector: its step, its validation and its files; the loop is ``engine/loop.py``.

The recipe is RT-DETR's (arXiv 2304.08069, section 5.1) with a flat-then-cosine learning rate (DEIM, arXiv 2412.04234).
Every length in it is a fraction of the run, which ``epochs`` or ``minutes`` define.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from nextdetr.confidence import Thresholds, barely_trained
from nextdetr.config import TrainConfig
from nextdetr.data.loader import TrainLoader
from nextdetr.data.records import DetectionData
from nextdetr.engine.best import Best
from nextdetr.engine.budget import Budget
from nextdetr.engine.curves import draw_curves
from nextdetr.engine.detector_files import DetectorFiles
from nextdetr.engine.diagnosis import non_finite
from nextdetr.engine.ema import ModelEMA
from nextdetr.engine.evaluate import CocoEvaluator, EvalResult
from nextdetr.engine.freezing import Freezing, leave_unread
from nextdetr.engine.latency import keep_contract
from nextdetr.engine.launch import largest, launch, scaler_of
from nextdetr.engine.loading import build_training_loader
from nextdetr.engine.log import Display, clock, shown_score
from nextdetr.engine.loop import Loop
from nextdetr.engine.optim import build_optimizer, rate_factor, set_rate
from nextdetr.engine.processes import validate
from nextdetr.engine.profile import StepProfile
from nextdetr.engine.report import thresholds_of, training_report
from nextdetr.engine.reserve import Reserve
from nextdetr.engine.result import TrainResult
from nextdetr.engine.semi import Semi, labelled_output, together
from nextdetr.engine.semi_run import SemiRun
from nextdetr.engine.setup import Run, prepare, resolve_config
from nextdetr.engine.teaching import Teaching
from nextdetr.engine.turning import TurnTest, turned
from nextdetr.inference.times import Meter
from nextdetr.layers.syncnorm import synchronize_norms
from nextdetr.losses.criterion import Criterion
from nextdetr.losses.matcher import HungarianMatcher
from nextdetr.memory import keep_freed_memory
from nextdetr.structures import Batch, Target, Uncast

__all__ = ["TrainResult", "train"]


def train(
    config: TrainConfig, *, quiet: bool = False, meter: Meter | None = None, limit: float | None = None
) -> TrainResult:
    """Train a detector.

    Args:
        config: all settings; see :class:`nextdetr.config.TrainConfig`.
        quiet: show no progress on standard error.
        meter: measures a setting for ``latency``; by default PyTorch is measured, as nothing is exported here.
        limit: minutes after which a run of a number of ``epochs`` ends anyway.

    Raises:
        ConfigError: settings contradict each other or do not fit this machine, or ``latency`` cannot be met.
        DataError: the data set cannot be used.
        ModelFileError: the model file cannot be built.
        WeightsError: initial weights or a resumed state cannot be read.
        TrainingError: the loss or the weights are not finite.
        Interrupted: Ctrl-C or a request to terminate; a checkpoint was written.
    """
    started = time.perf_counter()  # --minutes include the reading of the data
    given, config = config, resolve_config(config)
    keep_freed_memory()
    with (
        launch(given, config, train) as fabric,
        Display(enabled=fabric.global_rank == 0 and not quiet) as display,
        ExitStack() as held,
    ):
        return Trainer(prepare(config, fabric, display.line, held, meter), fabric, display, started, limit).run()


class Trainer(Loop):
    """One run of training; see :func:`train`."""

    command = "train"

    def __init__(
        self, run: Run, fabric: Fabric, display: Display, started: float | None = None, limit: float | None = None
    ) -> None:
        self.run_, self.config = run, turned(run.config, run.state.get("turns", {}))  # a resumed run may know
        config, cursor = run.config, run.cursor
        assert config.image_size is not None
        assert config.backbone_rate_factor is not None
        self.image_size = config.image_size
        loader = self.build_loader(fabric)
        self.freezing = Freezing(run.model, config)
        optimizer = build_optimizer(
            run.model, learning_rate=config.learning_rate, weight_decay=config.weight_decay,
            backbone_factor=config.backbone_rate_factor, layer_decay=config.layer_decay,
            fused=scaler_of(fabric) is None, optimizer=config.optimizer,
        )  # fmt: skip
        self.teaching = None
        if run.teacher is not None:
            run.teacher.to(fabric.device)
        if run.teacher is not None and config.teaches:
            self.teaching = Teaching(run.teacher, run.model, config, fabric)
            for group in self.teaching.parameter_groups(config):
                optimizer.add_param_group(group)
        if fabric.world_size > 1:
            synchronize_norms(run.model)
            leave_unread(run.model)
        ema = ModelEMA(run.model.to(fabric.device), config.ema_decay)
        profile = StepProfile(config.profile, fabric.device, teacher=run.teacher is not None or run.unlabelled is not None)
        budget = Budget.of(
            config.epochs, config.minutes, len(loader) * loader.sampler.places, spent=cursor.seconds, started=started,
            limit=limit,
        )  # fmt: skip
        super().__init__(
            config=config, fabric=fabric, display=display, directory=run.directory, cursor=cursor, budget=budget,
            loader=loader, model=run.model, optimizer=optimizer, ema=ema, contract=run.contract,
            accumulate=config.accumulate, profile=profile,
        )  # fmt: skip
        self.average, self.files = ema.module, DetectorFiles(run, ema.module)
        matcher = HungarianMatcher()
        self.criterion = Criterion(
            len(run.train_data.classes), matcher, class_loss=config.class_loss,
            fine_grained_weight=config.fine_grained_weight, distillation_weight=config.distillation_weight,
            dense_weight=config.dense_weight,
        )  # fmt: skip
        matcher.match = self.profile.wrap(matcher.match, "matcher")  # type: ignore[method-assign]
        self.scored: tuple[CocoEvaluator, EvalResult] | None = None  # detections of the last validation
        self.best_scored: tuple[CocoEvaluator, EvalResult] | None = None
        self.reserve = Reserve(self, run, config)
        self.turns = TurnTest(config, lambda data: self._examine(data)[1].metrics["AP"], display.line)
        self.new_best, self.went_back, self.semi = False, False, None
        if run.unlabelled is not None:
            semi = Semi(
                run.train_data, run.unlabelled, run.model, self.average, self.criterion, config, fabric, run.teacher
            )
            images = len(run.val_data.records)
            self.semi = SemiRun(self, semi, lambda: self._score_average()["AP"], self._picture, images)
        self.restore(run.state)

    def build_loader(self, fabric: Fabric) -> TrainLoader:
        """Return this process's batches; called when only ``run_`` and ``config`` are set."""
        return build_training_loader(
            self.config, self.run_.train_data, stride=self.run_.model.stride, rank=fabric.global_rank,
            world=fabric.world_size, unlabelled=self.run_.unlabelled,
        )  # fmt: skip

    def extra_state(self) -> dict[str, Any]:
        """Return state that no detector file has: of ``auto_turn``, the teacher, unlabelled images and ``latency``."""
        parts: dict[str, Any] = {"turns": self.turns.state_dict()}
        if self.teaching is not None:
            parts["projections"] = self.teaching.state_dict()
        if self.run_.times is not None:  # how much of --minutes the speed table needs
            parts["times"] = {"seconds": self.run_.times.seconds}
        return parts if self.semi is None else parts | {"unlabelled": self.semi.state_dict()}

    def restore_extra(self, state: Mapping[str, Any]) -> None:
        """Restore ``extra_state``."""
        self.turns.load_state_dict(state.get("turns", {}))  # earlier states have none
        if self.run_.times is not None:
            self.run_.times.seconds = float(state.get("times", {"seconds": 0.0})["seconds"])  # earlier states do not say
        if self.teaching is not None:
            self.teaching.load_state_dict(state["projections"])
        if self.semi is not None:
            self.semi.load_state_dict(state["unlabelled"])

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the parts of a ``last.ckpt``, and check that ``best.safetensors`` belongs to them."""
        super().restore(state)
        cursor, file = self.cursor, self.files.best
        if cursor.best.epoch == cursor.epoch and cursor.place == 0:
            # The state is saved with the best weights in it; the run may have been killed before writing them separately.
            # Otherwise the file stays: calibrate and report may have added to it since.
            if self.main and not self.files.has_written(file.name):
                self.files.write(file.name, cursor.best.metrics, cursor.best.thresholds)
        elif cursor.best.epoch >= 0 and not self.fabric.broadcast(file.is_file()):
            self.display.line(f"{file} no longer exists; the next validation counts as the best.")
            cursor.best = Best()

    # The whole run

    def run(self) -> TrainResult:
        """Train until the budget is spent, and return the result."""
        with self.logs:
            self.display.line(
                f"Training {self.config.model} at {self.image_size} px on {self.fabric.device}; run folder {self.directory}"
            )
            taught = [] if self.teaching is None else self.teaching.lines(self.run_.model)
            for line in (*self.files.lines(), *taught, *([] if self.semi is None else self.semi.semi.lines())):
                self.display.line(line)
            if self.budget.minutes is not None and not self.cursor.validated:
                self.reserve.expect(self._score)
            self.run_epochs()
            if self.cursor.validated != self.cursor.epoch:  # time ran out between two epochs
                self.amend_row(self._validate(self.cursor.epoch))
            self._settle()
            return self._finish()

    def begin_epoch(self) -> None:
        """Freeze or unfreeze the backbone, and turn images from now on if ``auto_turn`` said so."""
        if (config := self.turns.settings(self.config)) != self.config:
            self.config = config
            self.use_loader(self.build_loader(self.fabric))
            if self.semi is not None:
                self.semi.attach()
        if self.fabric.world_size == 1:  # saves computing the gradient; DDP has already decided which ones it waits for
            self.freezing.begin(self.cursor.epoch)

    def strong(self, place: int) -> bool:
        """Whether the batch at image ``place`` of the epoch has strong augmentation.

        With epochs this is a function of the place. With minutes the clock decides when the batch is assembled, which is
        earlier than its step by the loader's prefetch.
        """
        known = self.budget.minutes is None
        progress = self.budget.progress(self.cursor.epoch, place) if known else self.progress
        return progress < self.config.strong_until

    def has_enough(self) -> bool:
        """Whether patience has run out."""
        return self.cursor.best.out_of_patience(self.config.patience)

    # A step

    def step(self, batch: Batch, progress: float, last: bool) -> dict[str, float]:
        """Train on a batch and, if it is the ``last`` of its group, step the optimizer; return the losses."""
        cursor, config, part = self.cursor, self.config, self.profile.part
        if cursor.epoch == 0 and cursor.place == 0:
            self._picture(batch.images, batch.targets, "training_batch.jpg")
        factor = rate_factor(progress, cursor.step, warmup=config.warmup, flat=config.flat)
        cursor.rate = set_rate(self.optimizer, factor, frozen=self.freezing.whole(cursor.epoch))
        torch.manual_seed(self.seed_of_step(config.seed, self.fabric.global_rank))
        self.model.train()
        self.freezing.hold_statistics(cursor.epoch)
        batch, views = (batch, None) if self.semi is None else self.semi.look(batch)
        images, targets = together(batch, views)
        asked: dict[str, Any] = {}
        if self.teaching is not None:
            with part("teacher"):
                asked["questions"] = self.teaching.ask(images, progress)
        with self.fabric.no_backward_sync(self.model, enabled=not last):
            with part("forward"):
                output = self.model(images, Uncast(targets), **asked)
            with part("losses"):
                terms = self.criterion(labelled_output(output, batch, views), batch.targets)
                if self.semi is not None:
                    terms |= self.semi.semi.losses(output, views, progress)
                if self.teaching is not None:
                    terms |= self.teaching.losses(output)
                loss = torch.stack(list(terms.values())).sum()
            with part("backward"):
                self.fabric.backward(loss / self.group)
        counts = {} if self.semi is None else {"pseudo_boxes": self.semi.semi.count(views)}
        values = self.mean({"loss": loss, **terms, **counts})
        if not math.isfinite(values["loss"]):
            names = [self.run_.train_data.records[index].path.name for index in batch.indices]
            raise non_finite(self.run_.model, terms, names, cursor, self.saver.advice)
        if last:
            with part("optimiser"):
                self.freezing.drop_gradients(cursor.epoch)
                if self.teaching is not None:
                    self.teaching.synchronize()
                self.apply_gradients(config.clip_norm)
            with part("ema"):
                assert self.ema is not None
                self.ema.update(self.run_.model)
        return values

    # Validation

    def score(self, number: int) -> Mapping[str, float | None]:
        """Validate after epoch ``number`` if it is due."""
        return self._validate(number) if self._validation_due(number) else {}

    def _validation_due(self, number: int) -> bool:
        cursor, every = self.cursor, self.config.val_every
        since = self.budget.seconds - cursor.validated_at
        last, rested = largest(self.fabric, self.budget.progress(number, 0) >= 1.0, since >= 10 * cursor.validation_seconds)
        return bool(last or (rested if every is None else number % every == 0))

    def _validate(self, number: int) -> dict[str, float | None]:
        """Score the averaged weights after epoch ``number``."""
        cursor, started = self.cursor, self.budget.seconds
        self.saver.require_finite()
        self.display.update("validating", self.budget.progress(cursor.epoch, cursor.place), "")
        metrics = self._score_average()
        self.went_back = self.semi is not None and self.semi.validated(metrics["AP"])
        if self.went_back:
            self.scored = None  # the weights are those of an earlier state, with its scores
        self.new_best = cursor.best.update(number, cursor.metrics, cursor.thresholds)
        if self.new_best:
            self.best_scored = self.scored
        cursor.validated, cursor.validated_at = number, self.budget.seconds
        cursor.validation_seconds = self.budget.seconds - started
        self.reserve.keep(cursor.validation_seconds)
        self.turns.ask(self.run_.val_data, largest(self.fabric, self.budget.progress(number, 0))[0])
        self.unsaved = True
        return metrics

    def _settle(self) -> None:
        """Let the last weights be the best if ``val`` is too small to tell; not if the run ended early or went back."""
        cursor = self.cursor
        if self.progress < 1.0 or self.went_back or cursor.validated != cursor.epoch or cursor.place:
            return
        line = cursor.best.settle(cursor.epoch, cursor.metrics, cursor.thresholds, len(self.run_.val_data.records))
        if line is not None:
            self.new_best, self.unsaved, self.best_scored = True, True, self.scored
            self.display.line(line)

    def _score_average(self) -> dict[str, float | None]:
        """Score the averaged weights on ``val``; ``cursor`` keeps the scores."""
        self.scored, cursor = None, self.cursor
        cursor.metrics = metrics = self._score(self.run_.val_data)
        cursor.thresholds = Thresholds() if self.scored is None else thresholds_of(self.scored[0])
        return metrics

    def _score(self, data: DetectionData) -> dict[str, float | None]:
        self.scored = self._examine(data)
        return dict(self.scored[1].metrics)

    def _examine(self, data: DetectionData) -> tuple[CocoEvaluator, EvalResult]:
        """Run the averaged weights on all images of ``data``."""
        evaluator = CocoEvaluator(data)
        result = validate(
            self.average, data, image_size=self.image_size, batch_size=self.config.batch_size, device=self.fabric.device,
            fabric=self.fabric, evaluator=evaluator,
        )  # fmt: skip
        return evaluator, result

    # Writing

    def must_save(self) -> bool:
        """Whether the weights are the best so far; state and ``best.safetensors`` are written together."""
        self._settle()  # before the run's last save, which then has the choice
        return self.new_best

    def save(self) -> None:
        """Write everything needed to resume from here, including the best weights."""
        super().save()
        self.new_best = False

    def write_files(self) -> None:
        """Write the detector files.

        The state already exists, with the same weights in it: if the run is killed in between, a resumed run writes them.
        """
        if self.new_best:
            self.files.write(self.files.best.name, self.cursor.best.metrics, self.cursor.best.thresholds)
        scored = self.cursor.validated == self.cursor.epoch and self.cursor.place == 0
        metrics, thresholds = (self.cursor.metrics, self.cursor.thresholds) if scored else ({}, Thresholds())
        self.files.write("last.safetensors", metrics, thresholds)

    def _picture(self, images: Tensor, targets: Sequence[Target], name: str) -> None:
        if self.main:
            self.files.draw(images, targets, name)

    def _finish(self) -> TrainResult:
        cursor, best = self.cursor, self.cursor.best
        if self.unsaved:
            self.save()
        checkpoint = self.files.best
        if self.semi is not None:
            self.semi.guard.finish()
        speed = keep_contract(
            checkpoint, self.run_.val_data, self.config, self.fabric, self.run_.times, self.display, self.budget.ends
        )  # fmt: skip
        seconds = self.budget.seconds
        if self.main:
            draw_curves(self.directory / "metrics.csv", self.directory / "pictures" / "curves.png")
            if self.config.report or self.logs.asked_for:
                self.display.update("report", 1.0, "")
                self.best_scored = training_report(
                    checkpoint, self.run_.val_data, self.best_scored, self.config, self.fabric.device
                )
            found = {} if self.best_scored is None else self.best_scored[1].per_class
            classes = {name: values["AP"] for name, values in found.items()}
            self.logs.end(cursor.step, best.metrics, checkpoint, classes)
        self.fabric.barrier()
        self.display.line(
            f"Done in {clock(seconds)}: best AP {shown_score(best.metrics.get('AP'))} in epoch {best.epoch}; "
            f"weights in {checkpoint}"
        )
        if doubt := barely_trained(best.thresholds, self.run_.train_data.classes):
            self.display.line(f"The detector is {doubt}")
        if self.profile.enabled:
            self.display.line(self.profile.table())
        return TrainResult(
            str(self.directory), cursor.epoch, round(seconds, 2), round(cursor.images / max(1e-9, seconds), 3),
            {"epoch": best.epoch, "metrics": best.metrics}, str(checkpoint), self.profile.result(),
            speed,
        )  # fmt: skip
