"""The training loop: batches, step, save if due, stop if requested, end of epoch.

What is trained, how it is scored and what is saved beside ``last.ckpt`` is up to ``engine/train.py`` and
``engine/pretrain.py``, which implement the methods of :class:`Loop` marked as theirs.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from nextdetr.config import GraftConfig, PretrainConfig, TrainConfig
from nextdetr.data.loader import TrainLoader
from nextdetr.data.records import ImageRecord
from nextdetr.engine.budget import Budget
from nextdetr.engine.ema import ModelEMA
from nextdetr.engine.launch import largest
from nextdetr.engine.log import METRIC_NAMES, Display, MetricsTable, clock, epoch_line
from nextdetr.engine.loggers.run import RunLogs
from nextdetr.engine.profile import StepProfile
from nextdetr.engine.resume import Contract
from nextdetr.engine.saving import Saver
from nextdetr.engine.state import Cursor, step_seed
from nextdetr.engine.stopping import stop_on_signal
from nextdetr.engine.threads import ThreadTuner
from nextdetr.errors import FailedElsewhere, Interrupted, TrainingError
from nextdetr.installation import to_paste
from nextdetr.structures import Batch

__all__ = ["Loop"]


class Loop(ABC):
    """One run.

    Args:
        config: the settings.
        fabric: devices and processes.
        display: shows messages and progress.
        directory: the run's folder.
        cursor: starting position; updated during the run.
        budget: how long the run is.
        loader: this process's batches.
        model: the model to train.
        optimizer: of its parameters.
        ema: moving average of the weights, if one is kept.
        contract: conditions that a resumed run must meet.
        accumulate: batches whose gradients each process sums before the optimizer step.
        profile: collects the times of the parts of a step.
    """

    command: ClassVar[str]
    score_names: ClassVar[tuple[str, ...]] = METRIC_NAMES

    def __init__(
        self, *, config: TrainConfig | PretrainConfig | GraftConfig, fabric: Fabric, display: Display, directory: Path,
        cursor: Cursor, budget: Budget, loader: TrainLoader, model: nn.Module, optimizer: torch.optim.Optimizer,
        ema: ModelEMA | None, contract: Contract, accumulate: int = 1, profile: StepProfile | None = None,
    ) -> None:  # fmt: skip
        self.fabric, self.display, self.directory = fabric, display, directory
        self.cursor, self.budget, self.loader, self.sampler = cursor, budget, loader, loader.sampler
        self.network, self.ema, self.accumulate = model, ema, accumulate
        self.profile = profile or StepProfile(False)
        self.model, self.optimizer = fabric.setup(model, optimizer)
        self.stop_requested = threading.Event()
        self.progress = 0.0  # as agreed by all processes
        self.saver = Saver(
            directory / "last.ckpt", fabric=fabric, cursor=cursor, budget=budget, network=model,
            optimizer=self.optimizer, ema=ema, contract=contract,
        )  # fmt: skip
        self.unsaved = True  # whether anything changed since the last save
        self.summed = 0  # batches accumulated since the last optimizer step
        self.group = 1  # batches of the current step; the last of an epoch may have fewer than ``accumulate``
        self.group_start = cursor
        self.table: MetricsTable | None = None
        self.logs = RunLogs(config, directory, self.command, display.line, main=self.main)
        self.threads = ThreadTuner(fabric.device, display, processes=fabric.world_size)

    # Implemented by the task

    @abstractmethod
    def step(self, batch: Batch, progress: float, last: bool) -> dict[str, float]:
        """Train on a batch and, if it is the ``last`` of its group, step the optimizer.

        Returns:
            The losses, including ``loss``, the same in all processes.
        """

    @abstractmethod
    def score(self, number: int) -> Mapping[str, float | None]:
        """Return the scores after epoch ``number`` (from 1), if the epoch is to be scored."""

    @abstractmethod
    def write_files(self) -> None:
        """Write the files beside ``last.ckpt``, which has just been written; first process only."""

    def extra_state(self) -> dict[str, Any]:
        """Return additional state for ``last.ckpt``."""
        return {}

    def restore_extra(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - a task may have nothing to do
        """Restore what ``extra_state`` returned; it is part of ``state``."""

    def begin_epoch(self) -> None:  # noqa: B027 - a task may have nothing to do
        """Prepare for the batches of an epoch, or the rest of them."""

    def after_epoch(self, number: int) -> None:  # noqa: B027 - a task may have nothing to do
        """Hook at the end of epoch ``number`` (from 1), after scoring and saving."""

    def has_enough(self) -> bool:
        """Whether the run ends early."""
        return False

    def must_save(self) -> bool:
        """Whether to save at the end of an epoch regardless of the last save."""
        return False

    def strong(self, place: int) -> bool:
        """Whether strong augmentation is on for the batch at image ``place`` of the epoch."""
        return True

    # The whole run

    def run_epochs(self) -> None:
        """Train until the budget is spent.

        Raises:
            Interrupted: the user requested a stop; everything needed to resume was written.
            TrainingError: the loss or the weights are not finite.
            DataError: an image can no longer be read; everything needed to resume was written.
        """
        try:
            with stop_on_signal(self.stop_requested, self.display):
                while self._goes_on():
                    self._epoch()
        finally:
            self.loader.close()
            self.threads.restore()

    @property
    def main(self) -> bool:
        """Whether this process writes files."""
        return bool(self.fabric.global_rank == 0)

    @property
    def resume_folder(self) -> Path:
        """Argument of ``--resume`` that continues this run."""
        return self.directory

    def seed_of_step(self, seed: int, rank: int) -> int:
        """Seed of the current batch's randomness, from its number over all epochs."""
        number = self.cursor.epoch * len(self.sampler) + self.cursor.place // self.sampler.places
        return step_seed(seed, number, rank)

    @property
    def over(self) -> bool:
        """Whether time or epochs are used up, or no further improvement is expected."""
        return self.progress >= 1.0 or self.has_enough()

    @property
    def _due(self) -> bool:
        """Whether to save now; only the first process writes, and so knows how long that takes."""
        return self.main and self.saver.due

    def _goes_on(self) -> bool:
        self._agree()
        # A run that was stopped after the last batch of an epoch still has to end that epoch.
        return self.cursor.step == 0 or self.cursor.counted > 0 or not self.over

    def _agree(self, *flags: bool) -> list[bool]:
        """Set the progress and return the flags as agreed by all processes, whose clocks and signals differ."""
        self.progress, *agreed = largest(self.fabric, self.budget.progress(self.cursor.epoch, self.cursor.place), *flags)
        return [bool(flag) for flag in agreed]

    def _epoch(self) -> None:
        cursor, budget = self.cursor, self.budget
        self.begin_epoch()
        started, images = budget.seconds, cursor.images
        batches = iter(self.profile.batches(self.loader.epoch(cursor.epoch, start=cursor.place, strong=self.strong)))
        while True:
            batch, error = _fetch(batches)
            failed, stop, due = self._agree(error is not None, self.stop_requested.is_set(), self._due)
            if failed:
                self._give_up(error)
            if self.summed == 0:  # the state can be saved and resumed from
                if stop:
                    self._stop()
                if due:
                    self.save()
                if self.progress >= 1.0 and cursor.step:
                    break
                if self.accumulate > 1:
                    self.group_start = replace(cursor, sums=dict(cursor.sums))
            if batch is None:
                break
            with self.threads.step(batch.images.numel()):
                self._batch(batch.to(self.fabric.device))
        self._end_epoch((cursor.images - images) / max(1e-9, budget.seconds - started))

    def _batch(self, batch: Batch) -> None:
        cursor = self.cursor
        if self.summed == 0:
            self.group = min(self.accumulate, -(-(self.sampler.end - cursor.place) // self.sampler.places))
        last = self.summed + 1 == self.group
        values = self.step(batch, self.progress, last)
        self.summed = 0 if last else self.summed + 1
        self.unsaved = True
        cursor.step += int(last)
        cursor.place += self.sampler.places
        cursor.images += self.sampler.places
        cursor.counted += 1
        for name, value in values.items():
            cursor.sums[name] = cursor.sums.get(name, 0.0) + value
        if table := self.profile.step():
            self.display.line(table)
        left = self.budget.remaining_seconds(cursor.epoch, cursor.place)
        epochs = self.budget.estimated_epochs(cursor.epoch, cursor.place)
        self.display.update(
            f"epoch {cursor.epoch + 1}/{epochs}",
            self.budget.progress(cursor.epoch, cursor.place),
            f"loss {values['loss']:.4f}  step {cursor.step}  "
            f"{cursor.images / max(1e-9, self.budget.seconds):.1f} images/s  {clock(left)} left",
        )

    # Between epochs

    def _end_epoch(self, pace: float) -> None:
        cursor, budget = self.cursor, self.budget
        if not cursor.counted:  # time ran out before the first step
            return
        number = cursor.epoch + 1
        epochs = max(number, budget.estimated_epochs(cursor.epoch, cursor.place))
        means = {name: value / cursor.counted for name, value in cursor.sums.items()}
        row: dict[str, Any] = {
            "epoch": number, "step": cursor.step, "seconds": budget.seconds, "learning_rate": cursor.rate,
            **means, **self._scores(number),
        }  # fmt: skip
        row["seconds"] = budget.seconds
        self._write_row(row, [name for name in means if name != "loss"])
        self.display.line(epoch_line(number, epochs, row, pace, budget.remaining_seconds(number, 0)))
        cursor.epoch, cursor.place, cursor.sums, cursor.counted = number, 0, {}, 0
        (due,) = self._agree(self._due)
        if self.must_save() or due or self.over:
            self.save()
        self.after_epoch(number)

    def _scores(self, number: int) -> Mapping[str, float | None]:
        try:
            return self.score(number)
        except TrainingError:  # the weights are not worth keeping
            raise
        except Exception:  # for example a missing image; the resumed run scores this epoch
            self.save()
            raise

    def _write_row(self, row: dict[str, Any], terms: list[str]) -> None:
        if not self.main:
            return
        file = self.directory / "metrics.csv"
        self.table = self.table or MetricsTable(file, terms, self.cursor.epoch, self.score_names)
        self.table.add(row)
        self.log_numbers(row)

    def amend_row(self, scores: Mapping[str, float | None]) -> None:
        """Add scores to the row of the last epoch, which may be from an earlier session."""
        if not self.main:
            return
        number = self.cursor.epoch
        self.table = self.table or MetricsTable(self.directory / "metrics.csv", None, number, self.score_names)
        self.table.amend({"epoch": number, "step": self.cursor.step, **scores})
        self.log_numbers(scores)

    def log_numbers(self, values: Mapping[str, Any]) -> None:
        """Pass the numbers to the logging tools."""
        self.logs.add({name: value for name, value in values.items() if name not in ("epoch", "step")}, self.cursor.step)

    def use_loader(self, loader: TrainLoader) -> None:
        """Take the batches from another loader, from the next epoch on."""
        self.loader.close()
        self.loader, self.sampler = loader, loader.sampler

    # Writing

    def apply_gradients(self, clip_norm: float) -> None:
        """Step the optimizer with gradients clipped to this norm (0: no clipping), and clear them."""
        if clip_norm > 0:
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=clip_norm, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def diverged(self, images: Sequence[ImageRecord], batch: Batch) -> TrainingError:
        """Build the error for a loss of an unlabelled batch that is not finite."""
        names = ", ".join(images[index].path.name for index in batch.indices)
        return TrainingError(
            f"the loss is not finite in epoch {self.cursor.epoch + 1}, step {self.cursor.step + 1} (images {names}). "
            f"{self.saver.advice}"
        )

    def save(self) -> None:
        """Write everything needed to resume from here.

        Raises:
            TrainingError: the weights are not finite; the files are unchanged.
        """
        self.saver.save(self.progress, self.extra_state, self.write_files, main=self.main)
        self.unsaved = False

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the parts of a ``last.ckpt``; start fresh if there are none.

        Raises:
            WeightsError: they do not fit this run.
        """
        self.saver.restore(state, self.restore_extra)

    # Stopping early

    def _stop(self) -> None:
        self.save()
        command = to_paste(["nextdetr", self.command, "--resume", str(self.resume_folder)])
        raise Interrupted(
            f"stopped in epoch {self.cursor.epoch + 1} after {self.cursor.step} steps; resume with: {command}"
        )

    def _give_up(self, error: Exception | None) -> None:
        """Save what was learnt before the batch that failed, and raise its error."""
        if self.summed:  # the gradients of this group are lost; a resumed run repeats its batches
            for name in Cursor.__slots__:
                setattr(self.cursor, name, getattr(self.group_start, name))
        if self.cursor.step:
            self.save()
        if error is None:
            raise FailedElsewhere("another process of the run cannot go on; its own message says why.")
        raise error

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the means over all processes, so that all see the same loss and stop at the same step."""
        stacked = torch.stack([value.detach() for value in values.values()])
        if self.fabric.world_size > 1:
            agreed = self.fabric.all_reduce(stacked, reduce_op="mean")
            assert isinstance(agreed, Tensor)
            stacked = agreed
        return dict(zip(values, stacked.tolist(), strict=True))


def _fetch(batches: Iterator[Batch]) -> tuple[Batch | None, Exception | None]:
    """Return the next batch, None at the end, or the error, which is raised after saving."""
    try:
        return next(batches, None), None
    except Exception as error:  # noqa: BLE001 - whatever it is, it is raised again
        return None, error
