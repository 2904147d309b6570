"""Fewer threads for a training on a CPU that other programs use, too.

Each operation ends when the last of its threads does. If another program has one of the cores, the thread on that core
holds up all the others, which wait without doing anything useful. On two cores, one of them busy, training with two
threads runs at half the speed of training with one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator

import torch

from nextdetr.engine.log import Display

__all__ = ["ThreadTuner"]

_log = logging.getLogger(__name__)

INTERVAL = 20.0  # least seconds between two trials
SHARE = 30  # and at least this many times the duration of the last trial's steps, so that it costs little
ROUNDS = 3  # steps with each number of threads, in turns
GAIN = 1.15  # how much faster another number of threads must be; smaller differences are noise


class ThreadTuner:
    """Chooses the number of threads by timing training steps with other numbers from time to time.

    It is off on other devices, in runs of several processes, and if ``OMP_NUM_THREADS`` sets the number. The number at the
    start is never exceeded.

    Args:
        device: what the run trains on.
        display: shows the first change in each direction.
        processes: of the run.
        clock: returns seconds.
    """

    def __init__(
        self, device: torch.device, display: Display, *, processes: int = 1, clock: Callable[[], float] | None = None
    ) -> None:
        self.most = self.threads = torch.get_num_threads()
        self.enabled = device.type == "cpu" and processes == 1 and self.most > 1 and "OMP_NUM_THREADS" not in os.environ
        self._display, self._clock = display, clock or time.monotonic
        self._due, self._spent = self._clock(), 0.0
        self._to_try: list[int] = []
        self._taken: dict[int, list[float]] = {}
        self._told: set[bool] = set()

    @contextlib.contextmanager
    def step(self, work: float) -> Iterator[None]:
        """Run a training step with the number of threads that is best or to be tried.

        Args:
            work: how much there is to do compared with other steps, such as the pixels of the batch.
        """
        if not self.enabled:
            yield
            return
        began = self._clock()
        if not self._to_try and began >= self._due:
            self._to_try, self._taken, self._spent = self._candidates() * ROUNDS, {}, 0.0
        if not self._to_try:
            yield
            return
        count = self._to_try.pop(0)
        torch.set_num_threads(count)
        yield
        seconds = self._clock() - began
        self._spent += seconds
        self._taken.setdefault(count, []).append(seconds / max(work, 1e-9))
        if not self._to_try:
            self._decide()

    def restore(self) -> None:
        """Set the number at the start again: latencies are measured with it after the last step."""
        if self.enabled:
            torch.set_num_threads(self.most)

    def _candidates(self) -> list[int]:
        """The number in use and its neighbours, one more and one less, half and twice as many."""
        now = self.threads
        return sorted({count for count in (now, now // 2, now - 1, now + 1, 2 * now) if 1 <= count <= self.most})

    def _decide(self) -> None:
        cost = {count: statistics.median(taken) for count, taken in self._taken.items()}
        best = min(cost, key=lambda count: (cost[count], count))
        chosen = best if GAIN * cost[best] < cost[self.threads] else self.threads
        torch.set_num_threads(chosen)
        self._due = self._clock() + max(INTERVAL, SHARE * self._spent)
        if chosen != self.threads:
            self._tell(chosen)
        self.threads = chosen

    def _tell(self, chosen: int) -> None:
        fewer = chosen < self.threads
        text = f"Training uses {chosen} of {self.most} CPU threads"
        if fewer in self._told:
            _log.info("%s", text)
            return
        self._told.add(fewer)
        why = ", which is faster while other programs run (OMP_NUM_THREADS sets a fixed number)." if fewer else " again."
        self._display.line(text + why)
