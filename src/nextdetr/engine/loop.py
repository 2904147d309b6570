"""The loop of every training: batches, step, save if due, stop if asked, end of epoch.

What is trained, how it is scored and what is saved beside ``last.ckpt`` is the business of ``engine/train.py`` and
``engine/pretrain.py``, which fill in the methods of :class:`Loop` that are marked as theirs.
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
from nextdetr.engine.launch import largest, scaler_of
from nextdetr.engine.log import METRIC_NAMES, Display, MetricsTable, clock, epoch_line
from nextdetr.engine.loggers.run import RunLogs
from nextdetr.engine.profile import StepProfile
from nextdetr.engine.resume import Contract
from nextdetr.engine.state import Cursor, non_finite_tensor, step_seed, write_state
from nextdetr.engine.stopping import stop_on_signal
from nextdetr.errors import FailedElsewhere, Interrupted, TrainingError, WeightsError
from nextdetr.structures import Batch

__all__ = ["Loop"]

SAVE_EVERY = 60.0  # seconds between writes of last.ckpt, so that short epochs do not spend their time on the disk
SAVE_SHARE = 0.05  # of the time, at most, goes into writing it, however large the model is


class Loop(ABC):
    """One run.

    Args:
        config: the settings.
        fabric: devices and processes.
        display: takes what the user is told.
        directory: the run's folder.
        cursor: where to begin; moved along.
        budget: how long the run is.
        loader: this process's batches.
        model: what is trained.
        optimizer: of its parameters.
        ema: the average of its weights, if one is kept.
        contract: what a resumed run must find as it is now.
        accumulate: batches of which each process sums the gradients before the optimiser moves.
        profile: takes the time of a step's parts.
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
        self.network, self.ema, self.contract, self.accumulate = model, ema, contract, accumulate
        self.profile = profile or StepProfile(False)
        self.model, self.optimizer = fabric.setup(model, optimizer)
        self.stop_requested = threading.Event()
        self.progress = 0.0  # as all processes agreed on it
        self.saved_at, self.save_seconds = budget.seconds, 0.0
        self.unsaved = True  # whether anything has happened since the last save
        self.summed = 0  # batches whose gradients wait for the optimiser
        self.group_start = cursor
        self.table: MetricsTable | None = None
        self.logs = RunLogs(config, directory, self.command, display.line, main=self.main)

    # What a task fills in

    @abstractmethod
    def step(self, batch: Batch, progress: float, last: bool) -> dict[str, float]:
        """Train on a batch and, if it is the ``last`` of its group, move the optimiser.

        Returns:
            Its losses, ``loss`` among them, the same on all processes.
        """

    @abstractmethod
    def score(self, number: int) -> Mapping[str, float | None]:
        """Return the scores after epoch ``number`` (from 1), if it is to be scored."""

    @abstractmethod
    def write_files(self) -> None:
        """Write what lies beside ``last.ckpt``, which has just been written; the first process only."""

    def extra_state(self) -> dict[str, Any]:
        """Return what else belongs into ``last.ckpt``."""
        return {}

    def restore_extra(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - a task may have nothing to do
        """Continue from what ``extra_state`` returned, which is among the parts of ``state``."""

    def begin_epoch(self) -> None:  # noqa: B027 - a task may have nothing to do
        """Make ready for the batches of an epoch, or what is left of them."""

    def after_epoch(self, number: int) -> None:  # noqa: B027 - a task may have nothing to do
        """Do what remains after epoch ``number`` (from 1) was scored and saved."""

    def has_enough(self) -> bool:
        """Whether the run ends before its time."""
        return False

    def must_save(self) -> bool:
        """Whether the end of an epoch is to be saved whenever the last save was."""
        return False

    def strong(self, place: int) -> bool:
        """Whether the strong part of the augmentation is on for the batch at image ``place`` of the epoch."""
        return True

    # The whole run

    def run_epochs(self) -> None:
        """Train until the budget is spent.

        Raises:
            Interrupted: the user asked to stop; everything needed to go on was written.
            TrainingError: the loss or the weights are not finite.
            DataError: an image cannot be read any more; everything needed to go on was written.
        """
        try:
            with stop_on_signal(self.stop_requested, self.display):
                while self._goes_on():
                    self._epoch()
        finally:
            self.loader.close()

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return bool(self.fabric.global_rank == 0)

    @property
    def resume_folder(self) -> Path:
        """What ``--resume`` takes to go on with this run."""
        return self.directory

    def seed_of_step(self, seed: int, rank: int) -> int:
        """Seed of what is random in the batch under way, by its number over all epochs."""
        number = self.cursor.epoch * len(self.sampler) + self.cursor.place // self.sampler.places
        return step_seed(seed, number, rank)

    @property
    def over(self) -> bool:
        """Whether the run's time is up, or its epochs, or nothing better is to be expected."""
        return self.progress >= 1.0 or self.has_enough()

    def _goes_on(self) -> bool:
        self._agree()
        # A run that was stopped after the last batch of an epoch has yet to end that epoch.
        return self.cursor.step == 0 or self.cursor.counted > 0 or not self.over

    def _agree(self, *flags: bool) -> list[bool]:
        """Set the progress, and return the flags, as they are in any process: their clocks and signals differ."""
        self.progress, *agreed = largest(self.fabric, self.budget.progress(self.cursor.epoch, self.cursor.place), *flags)
        return [bool(flag) for flag in agreed]

    def _epoch(self) -> None:
        cursor, budget = self.cursor, self.budget
        self.begin_epoch()
        started, images = budget.seconds, cursor.images
        batches = iter(self.profile.batches(self.loader.epoch(cursor.epoch, start=cursor.place, strong=self.strong)))
        while True:
            batch, error = _fetch(batches)
            failed, stop, due = self._agree(error is not None, self.stop_requested.is_set(), self._save_due())
            if failed:
                self._give_up(error)
            if self.summed == 0:  # the state can be written, and gone on from
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
            self._batch(batch.to(self.fabric.device))
        self._end_epoch((cursor.images - images) / max(1e-9, budget.seconds - started))

    def _batch(self, batch: Batch) -> None:
        cursor = self.cursor
        last = self.summed + 1 == self.accumulate or cursor.place + self.sampler.places >= self.sampler.end
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
            f"{cursor.images / max(1e-9, self.budget.seconds):.1f} images/s  left {clock(left)}",
        )

    # What happens between epochs

    def _end_epoch(self, pace: float) -> None:
        cursor, budget = self.cursor, self.budget
        if not cursor.counted:  # the time was up before the first step
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
        (due,) = self._agree(self._save_due())
        if due or self.must_save() or self.over:
            self.save()
        self.after_epoch(number)

    def _scores(self, number: int) -> Mapping[str, float | None]:
        try:
            return self.score(number)
        except TrainingError:  # weights that are not worth keeping
            raise
        except Exception:  # an image that is gone, for one; the resumed run scores this epoch
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
        """Write scores that came after the row of the last epoch, which may be an earlier session's."""
        if not self.main:
            return
        number = self.cursor.epoch
        self.table = self.table or MetricsTable(self.directory / "metrics.csv", None, number, self.score_names)
        self.table.amend({"epoch": number, "step": self.cursor.step, **scores})
        self.log_numbers(scores)

    def log_numbers(self, values: Mapping[str, Any]) -> None:
        """Tell the tools that log the run."""
        self.logs.add({name: value for name, value in values.items() if name not in ("epoch", "step")}, self.cursor.step)

    # What is written

    def _save_due(self) -> bool:
        return self.budget.seconds - self.saved_at >= max(SAVE_EVERY, self.save_seconds / SAVE_SHARE)

    def require_finite(self) -> None:
        """See that weights that are about to be scored or written are numbers; all processes have the same ones.

        Raises:
            TrainingError: one is NaN or infinite.
        """
        parts = {"": self.network, "the average of ": None if self.ema is None else self.ema.module}
        for words, module in parts.items():
            name = None if module is None else non_finite_tensor(module.state_dict())
            if name is not None:
                raise TrainingError(
                    f"after step {self.cursor.step}, in epoch {self.cursor.epoch + 1}, {words}the weights {name} are not "
                    f"finite. {self.advice()}"
                )

    def apply_gradients(self, clip_norm: float) -> None:
        """Take a step of the optimiser, with gradients of at most this norm (0: of any), and clear them."""
        if clip_norm > 0:
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=clip_norm, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def diverged(self, images: Sequence[ImageRecord], batch: Batch) -> TrainingError:
        """Return what to raise when the loss of a batch without labels is not finite."""
        names = ", ".join(images[index].path.name for index in batch.indices)
        return TrainingError(
            f"the loss is not finite in epoch {self.cursor.epoch + 1}, step {self.cursor.step + 1} (images {names}). "
            f"{self.advice()}"
        )

    def advice(self) -> str:
        """What to do about a run that has diverged."""
        file = self.directory / "last.ckpt"
        kept = f"{file} is as it was" if file.is_file() else "nothing had been saved yet"
        return f"Lower --learning-rate, or train with --precision 32-true; {kept}."

    def save(self) -> None:
        """Write all that is needed to go on from here.

        Raises:
            TrainingError: the weights are not finite; the files are as they were.
        """
        cursor, started = self.cursor, self.budget.seconds
        self.require_finite()
        cursor.seconds, cursor.reserve, cursor.progress = started, self.budget.reserve, self.progress
        cursor.length = (self.budget.epochs, self.budget.minutes)
        if self.main:
            scaler = scaler_of(self.fabric)
            write_state(
                self.directory / "last.ckpt", cursor, contract=self.contract.to_state(),
                model=self.network.state_dict(), optimizer=self.optimizer.state_dict(),
                ema={} if self.ema is None else self.ema.state_dict(),
                scaler={} if scaler is None else scaler.state_dict(), **self.extra_state(),
            )  # fmt: skip
            self.write_files()
        self.unsaved, self.saved_at = False, self.budget.seconds
        self.save_seconds = self.saved_at - started

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the parts of a ``last.ckpt``; with none, begin.

        Raises:
            WeightsError: they do not fit this run.
        """
        if not state:
            return
        scaler, cursor = scaler_of(self.fabric), self.cursor
        try:
            self.network.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            if scaler is not None and state["scaler"]:
                scaler.load_state_dict(state["scaler"])
            self.restore_extra(state)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise WeightsError(
                f"{self.directory / 'last.ckpt'}: does not fit the model of the run ({str(error).strip().splitlines()[0]})."
            ) from error
        if cursor.length == (self.budget.epochs, self.budget.minutes):
            self.budget.go_on(cursor.progress, cursor.reserve)
        else:  # progress is the share of the new length that is over by now
            self.budget.keep_back(cursor.reserve)

    # How it stops early

    def _stop(self) -> None:
        self.save()
        raise Interrupted(
            f"stopped in epoch {self.cursor.epoch + 1} after {self.cursor.step} steps; go on with: "
            f"nextdetr {self.command} --resume {self.resume_folder}"
        )

    def _give_up(self, error: Exception | None) -> None:
        """Save what was learnt before the batch that cannot be had, and say why it cannot."""
        if self.summed:  # the gradients of this group of batches are lost, and the batches come again
            for name in Cursor.__slots__:
                setattr(self.cursor, name, getattr(self.group_start, name))
        if self.cursor.step:
            self.save()
        if error is None:
            raise FailedElsewhere("another process of the run cannot go on; its own message says why.")
        raise error

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the means over all processes, so that all of them see the same loss, and stop at the same step."""
        stacked = torch.stack([value.detach() for value in values.values()])
        if self.fabric.world_size > 1:
            agreed = self.fabric.all_reduce(stacked, reduce_op="mean")
            assert isinstance(agreed, Tensor)
            stacked = agreed
        return dict(zip(values, stacked.tolist(), strict=True))


def _fetch(batches: Iterator[Batch]) -> tuple[Batch | None, Exception | None]:
    """Return the next batch, None at the end; or what went wrong, so that it is raised after what was learnt is saved."""
    try:
        return next(batches, None), None
    except Exception as error:  # noqa: BLE001 - whatever it is, it is raised again
        return None, error
