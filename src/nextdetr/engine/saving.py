"""``last.ckpt`` of a run: when it is due, what never goes into it, and how a run continues from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from nextdetr.engine.budget import Budget
from nextdetr.engine.ema import ModelEMA
from nextdetr.engine.launch import scaler_of
from nextdetr.engine.resume import Contract
from nextdetr.engine.state import Cursor, non_finite_tensor, write_state
from nextdetr.errors import TrainingError, WeightsError

__all__ = ["Saver"]

SAVE_EVERY = 60.0  # seconds between writes of last.ckpt, so that short epochs are not dominated by disk writes
SAVE_SHARE = 0.05  # of the time at most is spent on writing it, even for a large model


class Saver:
    """Writes and restores the state of a run.

    Args:
        file: ``last.ckpt``.
        fabric: devices and processes.
        cursor: position of the run.
        budget: how long the run is.
        network: the model, as built.
        optimizer: as set up by ``fabric``.
        ema: moving average of the weights, if one is kept.
        contract: conditions that a resumed run must meet.
    """

    def __init__(
        self, file: Path, *, fabric: Fabric, cursor: Cursor, budget: Budget, network: nn.Module,
        optimizer: torch.optim.Optimizer, ema: ModelEMA | None, contract: Contract,
    ) -> None:  # fmt: skip
        self.file, self.fabric, self.cursor, self.budget = file, fabric, cursor, budget
        self.network, self.optimizer, self.ema, self.contract = network, optimizer, ema, contract
        self.saved_at, self.seconds = budget.seconds, 0.0  # of the last save: its end, and how long it took

    @property
    def due(self) -> bool:
        """Whether the last save is long enough ago."""
        return self.budget.seconds - self.saved_at >= max(SAVE_EVERY, self.seconds / SAVE_SHARE)

    @property
    def advice(self) -> str:
        """Advice for a run that diverged."""
        kept = f"{self.file} is as it was" if self.file.is_file() else "nothing was saved yet"
        return f"Lower --learning-rate, or train with --precision 32-true; {kept}."

    def require_finite(self) -> None:
        """Check that weights about to be scored or written are finite; they are the same in all processes.

        Raises:
            TrainingError: one is NaN or infinite.
        """
        parts = {"": self.network, "the average of ": None if self.ema is None else self.ema.module}
        for words, module in parts.items():
            name = None if module is None else non_finite_tensor(module.state_dict())
            if name is not None:
                raise TrainingError(
                    f"after step {self.cursor.step}, in epoch {self.cursor.epoch + 1}, {words}the weights {name} are not "
                    f"finite. {self.advice}"
                )

    def save(
        self, progress: float, extra: Callable[[], Mapping[str, Any]], write_files: Callable[[], None], *, main: bool
    ) -> None:
        """Write the state.

        Args:
            progress: completed fraction of the run, as agreed by all processes.
            extra: returns the task's own parts of the state.
            write_files: writes the files beside it.
            main: whether this process writes files; the others only check the weights.

        Raises:
            TrainingError: the weights are not finite; the files are unchanged.
        """
        cursor, started = self.cursor, self.budget.seconds
        self.require_finite()
        cursor.seconds, cursor.reserve, cursor.progress = started, self.budget.reserve, progress
        cursor.length = (self.budget.epochs, self.budget.minutes)
        if main:
            scaler = scaler_of(self.fabric)
            write_state(
                self.file, cursor, contract=self.contract.to_state(),
                model=self.network.state_dict(), optimizer=self.optimizer.state_dict(),
                ema={} if self.ema is None else self.ema.state_dict(),
                scaler={} if scaler is None else scaler.state_dict(), **extra(),
            )  # fmt: skip
            write_files()
        self.saved_at = self.budget.seconds
        self.seconds = self.saved_at - started

    def restore(self, state: Mapping[str, Any], restore_extra: Callable[[Mapping[str, Any]], None]) -> None:
        """Continue from the parts of a state; start fresh if there are none.

        Args:
            state: the parts, without the cursor.
            restore_extra: restores the task's own parts.

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
            restore_extra(state)
        except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise WeightsError(f"{self.file}: does not fit the model of the run ({reason}).") from error
        if cursor.length == (self.budget.epochs, self.budget.minutes):
            self.budget.go_on(cursor.progress, cursor.reserve)
        else:  # progress becomes the completed fraction of the new length
            self.budget.keep_back(cursor.reserve)
