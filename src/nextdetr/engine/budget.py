"""Length of a run, in epochs or in minutes. Every part of the schedule is a fraction of it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

__all__ = ["DEFAULT_EPOCHS", "Budget"]

DEFAULT_EPOCHS = 72
LARGEST_RESERVE = 0.5  # of the minutes; a run that only validates learns nothing


@dataclass(slots=True)
class Budget:
    """Progress of a run, 0 to 1.

    With a time budget, progress continues linearly from its current value to 1 at the end. A change of the remaining time
    (a new reserve, a resume) changes the speed from then on, never the value.

    Attributes:
        epochs: length in epochs, or None.
        minutes: length in minutes of wall-clock time, or None; exactly one of the two is set. Everything counts: checking
            the data, loading, training, validating and writing.
        limit: with ``epochs``, a time limit in minutes; the schedule then ends there.
        places: images per epoch, including those that fill up the last batch.
        spent: seconds used by earlier sessions of a resumed run.
        reserve: seconds reserved for the last validation; see ``keep_back``.
        started: start of this session (``time.perf_counter``).
        since, passed: progress was ``passed`` at ``since`` seconds and continues from there.
    """

    epochs: int | None
    minutes: float | None
    places: int
    spent: float = 0.0
    reserve: float = 0.0
    started: float = field(default_factory=time.perf_counter)
    since: float = 0.0
    passed: float = 0.0
    limit: float | None = None

    @classmethod
    def of(
        cls, epochs: int | None, minutes: float | None, places: int, *, spent: float = 0.0, started: float | None = None,
        limit: float | None = None,
    ) -> Budget:  # fmt: skip
        """Apply the default length when neither is given."""
        if minutes is None and epochs is None:
            epochs = DEFAULT_EPOCHS
        started = time.perf_counter() if started is None else started
        return cls(epochs if minutes is None else None, minutes, max(1, places), spent, started=started, limit=limit)

    @property
    def length(self) -> str:
        """The length in words, such as "30 minutes"."""
        amount, noun = (self._epochs, "epoch") if self.minutes is None else (self.minutes, "minute")
        return f"{amount:g} {noun}{'s' * (amount != 1)}"

    @property
    def seconds(self) -> float:
        """Wall-clock time of the run so far, over all sessions."""
        return self.spent + time.perf_counter() - self.started

    @property
    def ends(self) -> float:
        """When the minutes are over, as ``time.perf_counter`` will say; infinite without."""
        return math.inf if self.minutes is None else self.started + self.minutes * 60 - self.spent

    def can_keep_back(self, seconds: float) -> bool:
        """Whether ``keep_back`` reserves all of this time."""
        return self.minutes is None or seconds <= LARGEST_RESERVE * self.minutes * 60

    def keep_back(self, seconds: float) -> None:
        """Reserve this much time for the last validation, at most half of the minutes."""
        passed = self.progress(0, 0)
        if self.minutes is not None:
            seconds = min(seconds, LARGEST_RESERVE * self.minutes * 60)
            self.since, self.passed = self.seconds, passed
        self.reserve = seconds

    def go_on(self, progress: float, reserve: float) -> None:
        """Continue from the progress of an earlier session, which had reserved ``reserve`` seconds."""
        self.since, self.passed, self.reserve = self.seconds, progress, reserve

    def progress(self, epoch: int, place: int) -> float:
        """Fraction of the run before image ``place`` of epoch ``epoch`` (both from 0)."""
        if self.minutes is None:
            shown = (epoch + min(1.0, place / self.places)) / self._epochs
            return min(1.0, max(shown, self._share_of_limit()))
        left = self.minutes * 60 - self.reserve - self.since
        if left <= 0:
            return 1.0
        return min(1.0, self.passed + (1 - self.passed) * (self.seconds - self.since) / left)

    def over(self, epoch: int, place: int) -> bool:
        """Whether training ends before this image."""
        return self.progress(epoch, place) >= 1.0

    def estimated_epochs(self, epoch: int, place: int) -> int:
        """Expected number of epochs of the whole run, at the current speed."""
        if self.minutes is None:
            return self._epochs
        done = epoch + place / self.places
        progress = self.progress(epoch, place)
        return max(1, math.ceil(done / progress)) if progress > 0 and done > 0 else 1

    def remaining_seconds(self, epoch: int, place: int) -> float | None:
        """Remaining time at the current speed; None at the very start."""
        if self.minutes is not None:
            return max(0.0, self.minutes * 60 - self.seconds)
        progress = self.progress(epoch, place)
        return self.seconds / progress * (1 - progress) if progress > 0.002 else None

    def _share_of_limit(self) -> float:
        if self.limit is None:
            return 0.0
        return self.seconds / (self.limit * 60 - min(self.reserve, LARGEST_RESERVE * self.limit * 60))

    @property
    def _epochs(self) -> int:
        return self.epochs or DEFAULT_EPOCHS
