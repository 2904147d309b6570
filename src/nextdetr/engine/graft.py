"""Put a detector's head on another backbone and align the two on unlabelled images; the loop is ``engine/loop.py``.

Everything but the backbone comes from the old detector (``models/graft.py``). The old detector sees the same crops, and the
new one learns to reproduce its results: the maps after the new convolutions and those that reach the decoder, channel by
channel relative to their variance, and the classes, boxes and distributions of the most confident queries
(``losses/distill.py``). BatchNorms of the old head keep their statistics.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from nextdetr.config import GraftConfig, build_config
from nextdetr.data.loader import EpochSampler, build_loader
from nextdetr.data.transforms import multi_scale_sizes
from nextdetr.data.unlabelled import UnlabelledDataset
from nextdetr.engine.budget import Budget
from nextdetr.engine.ema import ModelEMA
from nextdetr.engine.graft_setup import Grafting, build_graft_optimizer, graft_folder, prepare_graft, resolve_graft
from nextdetr.engine.launch import launch, scaler_of
from nextdetr.engine.log import Display
from nextdetr.engine.optim import rate_factor, set_rate
from nextdetr.engine.unlabelled_run import ScoredByLoss, origin_state
from nextdetr.losses.distill import DistillationLoss, regression_loss
from nextdetr.memory import keep_freed_memory
from nextdetr.models.answers import answer
from nextdetr.structures import Batch
from nextdetr.weights.checkpoint import save_detector

__all__ = ["GraftResult", "Grafter", "graft", "run_graft"]


@dataclass(frozen=True, slots=True)
class GraftResult:
    """What ``graft`` returns; the fields of the JSON result.

    Attributes:
        output: the run's folder.
        epochs: epochs trained, over all sessions of the run.
        seconds: wall-clock time, over all sessions of the run.
        images_per_second: images per second of wall-clock time.
        loss: mean loss of the last epoch.
        checkpoint: the grafted detector, with the old one's classes.
        parameters: number of parameters.
        weights_licence: licences of the weights of both sources.
    """

    output: str
    epochs: int
    seconds: float
    images_per_second: float
    loss: float
    checkpoint: str
    parameters: int
    weights_licence: str

    def to_json(self) -> dict[str, Any]:
        """Return the JSON result of the command."""
        return {"command": "graft", **asdict(self)}


def graft(
    detector: str | Path | None = None,
    *,
    backbone: str | None = None,
    images: str | Path | Sequence[str | Path] = (),
    quiet: bool = False,
    **settings: Any,
) -> GraftResult:
    """Put a detector's encoder and decoder on a ConvNeXt V2 backbone, and align them on unlabelled images.

    Args:
        detector: a checkpoint, the folder of a run, weights of another program, or the name of published weights.
        backbone: ``convnextv2-`` and a size, then ``=`` and a file or name if there are weights for it.
        images: a folder of images, a data set as for ``train`` (its training split is used), or several of these.
        quiet: show no progress on standard error.
        settings: the options of ``nextdetr graft`` as keywords (``epochs``, ``minutes``, ``resume``, …).

    Raises:
        NextDETRError: see :func:`run_graft`.

    Example:
        >>> import nextdetr
        >>> grafted = nextdetr.graft("dfine-n-coco", backbone="convnextv2-atto=atto.pt", images="photos", minutes=20)
        >>> nextdetr.Detector(grafted.checkpoint).train(data="labelled")
    """
    given = {"detector": None if detector is None else str(detector), "backbone": backbone, "images": images or None}
    return run_graft(
        build_config(GraftConfig, {**{k: v for k, v in given.items() if v is not None}, **settings}), quiet=quiet
    )


def run_graft(config: GraftConfig, *, quiet: bool = False) -> GraftResult:
    """Make a graft.

    Args:
        config: all settings; see :class:`nextdetr.config.GraftConfig`.
        quiet: show no progress on standard error.

    Raises:
        ConfigError: settings contradict each other or do not fit this machine, or the detector cannot be grafted.
        DataError: no image can be used.
        WeightsError: weights or a resumed state cannot be read or do not fit.
        TrainingError: the loss or the weights are not finite.
        Interrupted: Ctrl-C or a request to terminate; a checkpoint was written.
    """
    started = time.perf_counter()
    given, config = config, resolve_graft(config)
    keep_freed_memory()
    with (
        launch(given, config, run_graft) as fabric,
        Display(enabled=fabric.global_rank == 0 and not quiet) as display,
        ExitStack() as held,
    ):
        run = prepare_graft(config, graft_folder(config, held), display.line)
        return Grafter(run, fabric, display, started).run()


class Grafter(ScoredByLoss):
    """One run of a graft; see :func:`run_graft`."""

    command = "graft"

    def __init__(self, run: Grafting, fabric: Fabric, display: Display, started: float | None = None) -> None:
        self.run_, self.config = run, run.config
        config, cursor, model = run.config, run.cursor, run.model
        assert config.image_size is not None
        sizes = multi_scale_sizes(config.image_size, step=model.stride) if config.multi_scale else None
        sampler = EpochSampler(
            len(run.data.records), config.batch_size, seed=config.seed, base_size=config.image_size, multi_scale=sizes
        )
        dataset = UnlabelledDataset(
            run.data, config.seed, crop_min=config.crop_min, flip=config.flip,
            cache_bytes=int(config.cache_gigabytes * 2**30), shrink_to=2 * max(sizes or (config.image_size,)),
        )  # fmt: skip
        self.fresh: list[nn.Module] = [model.backbone, *(model.rows[row] for row in run.graft.joints)]
        optimizer = build_graft_optimizer(model, self.fresh, config, fused=scaler_of(fabric) is None)
        run.teacher.to(fabric.device)
        self.indices = {key: new for key, (_, new) in enumerate(run.graft.pairs)}
        self.distillation = DistillationLoss(config.places_weight, 0.0)
        super().__init__(
            config=config, fabric=fabric, display=display, directory=run.directory, cursor=cursor,
            budget=Budget.of(
                config.epochs, config.minutes, len(sampler) * sampler.places, spent=cursor.seconds, started=started
            ),
            loader=build_loader(dataset, sampler, workers=config.workers), model=model, optimizer=optimizer,
            ema=ModelEMA(model.to(fabric.device), config.ema_decay), contract=run.contract,
        )  # fmt: skip
        self.restore(run.state)

    def restore_extra(self, state: Mapping[str, Any]) -> None:
        """Restore the last epoch's loss."""
        self.loss = state["graft"]["loss"]

    def extra_state(self) -> dict[str, Any]:
        """Return the last epoch's loss and the origin of the weights."""
        return {"graft": {"loss": self.loss}, **origin_state(self.run_.started_from)}

    def run(self) -> GraftResult:
        """Train until the budget is spent, and return the result."""
        config, run = self.config, self.run_
        backbone = str(config.backbone).partition("=")[0]
        head = "is frozen" if config.head_rate_factor == 0 else f"learns at {config.head_rate_factor:g} of the rate"
        self.display.line(
            f"Grafting {config.detector} onto {backbone} at {config.image_size} px for {self.budget.length}, on "
            f"{self.fabric.device}: the backbone and {len(run.graft.joints)} convolutions before the head are new, "
            f"the head {head}; run folder {self.directory}"
        )
        with self.logs:
            self.run_epochs()
            return self._finish()

    def step(self, batch: Batch, progress: float, last: bool) -> dict[str, float]:
        """Train on a batch and return the losses."""
        cursor, config, run = self.cursor, self.config, self.run_
        cursor.rate = set_rate(self.optimizer, rate_factor(progress, cursor.step, warmup=config.warmup, flat=config.flat))
        torch.manual_seed(self.seed_of_step(config.seed, 0))
        run.model.eval()
        for module in self.fresh:
            module.train()
        with self.fabric.autocast():
            lesson = run.teacher.teach(batch.images, tuple(self.indices))
            answers = answer(run.model, batch.images, lesson.points, self.indices)
        terms = self.distillation(answers, lesson, {}) if config.places_weight > 0 else {}
        if config.maps_weight > 0:
            losses = [regression_loss(answers.maps[key], lesson.maps[key]) for key in self.indices]
            terms["loss_teacher_maps"] = torch.stack(losses).mean() * config.maps_weight
        loss = torch.stack(list(terms.values())).sum()
        self.fabric.backward(loss)
        values = self.mean({"loss": loss, **terms})
        if not math.isfinite(values["loss"]):
            raise self.diverged(run.data.records, batch)
        self.apply_gradients(config.clip_norm)
        assert self.ema is not None
        self.ema.update(run.model)
        return values

    def write_files(self) -> None:
        """Write the detector with the averaged weights."""
        assert self.ema is not None
        assert self.config.image_size is not None
        origin = self.run_.started_from
        save_detector(
            self.checkpoint, self.ema.module.state_dict(), model_text=self.run_.graft.text, classes=self.run_.classes,
            image_size=self.config.image_size, weights_licence=origin.licence, source_weights=origin.file,
            extra=self.run_.extra,
            data=self.run_.teacher.opened.metadata.get("data", "none"),
        )  # fmt: skip

    @property
    def checkpoint(self) -> Path:
        """The grafted detector's file."""
        return self.directory / "last.safetensors"

    def _finish(self) -> GraftResult:
        cursor, backbone = self.cursor, str(self.config.backbone).partition("=")[0]
        seconds = self.finish(backbone, len(self.run_.data.records), self.checkpoint, "detector")
        return GraftResult(
            str(self.directory), cursor.epoch, round(seconds, 2), round(cursor.images / max(1e-9, seconds), 3), self.loss,
            str(self.checkpoint), sum(p.numel() for p in self.run_.model.parameters()), self.run_.started_from.licence,
        )  # fmt: skip
