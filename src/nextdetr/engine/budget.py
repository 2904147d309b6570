"""How long a run is: a number of epochs, or minutes on the wall; every part of the schedule is a share of it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

__all__ = ["DEFAULT_EPOCHS", "Budget"]

DEFAULT_EPOCHS = 72


@dataclass(slots=True)
class Budget:
    """Progress of a run, 0 to 1.

    Attributes:
        epochs: length in epochs, or None.
        minutes: length in minutes of wall-clock, or None; exactly one of the two is set. Everything counts: loading,
            training, validation and writing.
        steps_per_epoch: batches an epoch.
        spent: seconds that earlier sessions of a resumed run have used.
        reserve: seconds kept back for the last validation.
    """

    epochs: int | None
    minutes: float | None
    steps_per_epoch: int
    spent: float = 0.0
    reserve: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    @classmethod
    def of(cls, epochs: int | None, minutes: float | None, steps_per_epoch: int, spent: float = 0.0) -> Budget:
        """Apply the default length when neither is given."""
        if minutes is None and epochs is None:
            epochs = DEFAULT_EPOCHS
        return cls(epochs if minutes is None else None, minutes, max(1, steps_per_epoch), spent)

    @property
    def seconds(self) -> float:
        """Wall-clock of the run so far, all sessions of it."""
        return self.spent + time.perf_counter() - self.started

    def progress(self, epoch: int, batch: int) -> float:
        """Share of the run that is over before batch ``batch`` of epoch ``epoch`` (both from 0)."""
        if self.minutes is not None:
            return min(1.0, self.seconds / max(1e-9, self.minutes * 60 - self.reserve))
        return min(1.0, (epoch + batch / self.steps_per_epoch) / self._epochs)

    def over(self, epoch: int, batch: int) -> bool:
        """Whether training ends before this batch."""
        return self.progress(epoch, batch) >= 1.0

    def estimated_epochs(self, epoch: int, batch: int) -> int:
        """Epochs that the whole run will have, by the pace so far."""
        if self.minutes is None:
            return self._epochs
        done = epoch + batch / self.steps_per_epoch
        progress = self.progress(epoch, batch)
        return max(1, math.ceil(done / progress)) if progress > 0 and done > 0 else 1

    def remaining_seconds(self, epoch: int, batch: int) -> float | None:
        """Time left by the pace so far; None at the very start."""
        if self.minutes is not None:
            return max(0.0, self.minutes * 60 - self.seconds)
        progress = self.progress(epoch, batch)
        return self.seconds / progress * (1 - progress) if progress > 0.002 else None

    @property
    def _epochs(self) -> int:
        return self.epochs or DEFAULT_EPOCHS
