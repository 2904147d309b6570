"""Where the time of a training step goes; nothing is measured, and next to nothing is spent, unless it is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch

__all__ = ["PARTS", "StepProfile"]

#: Parts of a step, in their order. The matcher runs inside the losses and is not counted there.
PARTS = ("data", "forward", "matcher", "losses", "backward", "optimiser", "ema")
REPORT_AFTER = 20  # steps until the first table
WARM_UP = 2  # first steps, whose allocations and warm caches are not what a step costs, are left out

T = TypeVar("T")
_NOTHING: AbstractContextManager[None] = nullcontext()


class StepProfile:
    """Seconds of the parts of a step, summed over steps; parts inside parts count once, for the inner one.

    Args:
        enabled: whether to measure; otherwise every method does nothing.
        device: waited for at the ends of a part, or a GPU's work would be counted where its result is needed.
        teacher: whether there is a teacher, whose part is ``teacher``.
    """

    def __init__(self, enabled: bool, device: torch.device | None = None, *, teacher: bool = False) -> None:
        self.enabled = enabled
        self._wait = _waiting(device)
        self._parts = (PARTS[0], "teacher", *PARTS[1:]) if teacher else PARTS
        self._seconds = dict.fromkeys(self._parts, 0.0)
        self._stack: list[str] = []
        self._since = 0.0
        self._began = 0.0
        self._skipped = 0
        self._steps = 0
        self._total = 0.0

    def part(self, name: str) -> AbstractContextManager[None]:
        """Return a context whose time counts for the part ``name``."""
        return self._timed(name) if self.enabled else _NOTHING

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        self._switch()
        self._stack.append(name)
        try:
            yield
        finally:
            self._switch()
            self._stack.pop()

    def _switch(self) -> None:
        """Book the time since the last switch on the part that is under way."""
        self._wait()
        now = time.perf_counter()
        if self._stack:
            self._seconds[self._stack[-1]] += now - self._since
        self._since = now

    def wrap(self, function: Callable[..., T], name: str) -> Callable[..., T]:
        """Return the function with its time counted for the part ``name``; the function itself if nothing is measured."""
        if not self.enabled:
            return function

        def timed(*arguments: Any, **keywords: Any) -> T:
            with self._timed(name):
                return function(*arguments, **keywords)

        return timed

    def batches(self, source: Iterable[T]) -> Iterable[T]:
        """Return the batches with the waiting for them counted as ``data``."""
        return self._timed_batches(source) if self.enabled else source

    def _timed_batches(self, source: Iterable[T]) -> Iterator[T]:
        iterator = iter(source)
        while True:
            self._began = time.perf_counter()
            with self._timed("data"):
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch

    def step(self) -> str | None:
        """Count a step that is over; return the table when it is time to show it for the first time."""
        if not self.enabled:
            return None
        self._wait()
        self._total += time.perf_counter() - self._began
        if self._skipped < WARM_UP:
            self._skipped += 1
            self._seconds, self._total = dict.fromkeys(self._parts, 0.0), 0.0
            return None
        self._steps += 1
        return self.table() if self._steps == REPORT_AFTER else None

    def result(self) -> dict[str, Any] | None:
        """Return the number of ``steps``, seconds a ``step``, and those of its ``parts`` with the ``rest``; None if off."""
        if not self.enabled:
            return None
        steps = max(1, self._steps)
        parts = {name: seconds / steps for name, seconds in self._seconds.items()}
        whole = self._total / steps
        parts["rest"] = max(0.0, whole - sum(parts.values()))
        return {"steps": self._steps, "step": round(whole, 6), "parts": {k: round(v, 6) for k, v in parts.items()}}

    def table(self) -> str:
        """Return the result in words: a line a part with milliseconds and per cent."""
        result = self.result()
        if result is None or not result["steps"]:
            return "Profile: no step was measured; the first ones are left out."
        whole = max(result["step"], 1e-9)
        lines = [f"Profile of {result['steps']} steps, {1000 * whole:.1f} ms each:"]
        lines += [f"  {name:<10}{1000 * value:9.1f} ms {value / whole:7.1%}" for name, value in result["parts"].items()]
        return "\n".join(lines)


def _waiting(device: torch.device | None) -> Callable[[], None]:
    if device is not None and device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    if device is not None and device.type == "mps":
        return torch.mps.synchronize
    return lambda: None
