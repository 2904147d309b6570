"""Fewer threads for a training on a CPU that other programs use, too.

Each operation ends when the last of its threads does. If another program has one of the cores, the thread on that core
holds up all the others, which wait without doing anything useful. On two cores, one of them busy, training with two
threads runs at half the speed of training with one.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

import torch
from torch import nn

from nextdetr.engine.log import Display

__all__ = ["ThreadTuner"]

_log = logging.getLogger(__name__)

INTERVAL = 20.0  # seconds between two checks; one takes some 0.1 s on two cores
SLICE = 0.025  # seconds of work to time a number of threads with, a multiple of a scheduler's turns of some 3 ms
ROUNDS = 2  # of each number, in turns
GAIN = 1.15  # how much faster another number of threads must be; smaller differences are noise


class ThreadTuner:
    """Chooses the number of threads that is fastest at the moment, by timing a little work between training steps.

    It is off on other devices, in runs of several processes, and if ``OMP_NUM_THREADS`` sets the number. The number at the
    start is never exceeded.

    Args:
        device: what the run trains on.
        display: shows the first change in each direction.
        processes: of the run.
        clock: returns seconds.
        speed: returns the work per second with a number of threads, which it sets.
    """

    def __init__(
        self, device: torch.device, display: Display, *, processes: int = 1,
        clock: Callable[[], float] = time.monotonic, speed: Callable[[int], float] | None = None,
    ) -> None:  # fmt: skip
        self.most = self.threads = torch.get_num_threads()
        self.enabled = device.type == "cpu" and processes == 1 and self.most > 1 and "OMP_NUM_THREADS" not in os.environ
        self._display, self._clock, self._speed = display, clock, speed or _Work().speed
        self._next = clock()
        self._told: set[bool] = set()

    def adapt(self) -> None:
        """Check whether another number of threads is faster, if a check is due, and set it."""
        if not self.enabled or self._clock() < self._next:
            return
        speeds = {count: 0.0 for count in self._candidates()}
        for _ in range(ROUNDS):
            for count in speeds:
                speeds[count] = max(speeds[count], self._speed(count))
        best = max(speeds, key=lambda count: (speeds[count], -count))
        chosen = best if speeds[best] > GAIN * speeds[self.threads] else self.threads
        torch.set_num_threads(chosen)
        self._next = self._clock() + INTERVAL
        if chosen != self.threads:
            self._tell(chosen)
        self.threads = chosen

    def restore(self) -> None:
        """Set the number at the start again: latencies are measured with it after the last step."""
        if self.enabled:
            torch.set_num_threads(self.most)

    def _candidates(self) -> list[int]:
        """The number in use and its neighbours, one more and one less, half and twice as many."""
        now = self.threads
        return sorted({count for count in (now, now // 2, now - 1, now + 1, 2 * now) if 1 <= count <= self.most})

    def _tell(self, chosen: int) -> None:
        fewer = chosen < self.threads
        text = f"Training uses {chosen} of {self.most} CPU threads"
        if fewer in self._told:
            _log.info("%s", text)
            return
        self._told.add(fewer)
        why = ", which is faster while other programs run (OMP_NUM_THREADS sets a fixed number)." if fewer else " again."
        self._display.line(text + why)


class _Work:
    """A small network, forward and backward, that takes a few milliseconds, as the operations of a training step do."""

    def __init__(self) -> None:
        self._network: nn.Module | None = None

    def speed(self, threads: int) -> float:
        """Work per second with this number of threads."""
        torch.set_num_threads(threads)
        self._pass()  # the first one with a number of threads also starts them and prepares the convolutions
        started, count = time.perf_counter(), 0
        while (passed := time.perf_counter() - started) < SLICE:
            self._pass()
            count += 1
        return count / passed

    def _pass(self) -> None:
        if self._network is None:
            # Constant weights: random ones would take numbers from the run's own sequence.
            layers = [nn.utils.skip_init(nn.Conv2d, 64, 64, 3, padding=1) for _ in range(4)]
            for parameter in (parameter for layer in layers for parameter in layer.parameters()):
                nn.init.constant_(parameter, 0.001)
            self._network = nn.Sequential(*layers).to(memory_format=torch.channels_last)
            self._images = torch.ones(4, 64, 28, 28).contiguous(memory_format=torch.channels_last)
        with torch.enable_grad():
            self._network(self._images).sum().backward()
