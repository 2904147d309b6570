"""Profile of a training step; costs next to nothing unless it is enabled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch

__all__ = ["PARTS", "StepProfile"]

#: Parts of a step, in order. The matcher runs inside the losses and is not counted there.
PARTS = ("data", "forward", "matcher", "losses", "backward", "optimiser", "ema")
REPORT_AFTER = 20  # steps until the first table
WARM_UP = 2  # steps left out at the start: their allocations and cold caches are not typical

T = TypeVar("T")
_NOTHING: AbstractContextManager[None] = nullcontext()


class StepProfile:
    """Seconds spent in the parts of a step, summed over steps; nested parts count once, for the inner one.

    Args:
        enabled: whether to measure; otherwise every method does nothing.
        device: synchronised at the end of each part, so that a GPU's work is counted where it was started.
        teacher: whether there is a teacher; its part is ``teacher``.
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
        """Return a context manager whose time counts for the part ``name``."""
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
        """Add the time since the last switch to the current part."""
        self._wait()
        now = time.perf_counter()
        if self._stack:
            self._seconds[self._stack[-1]] += now - self._since
        self._since = now

    def wrap(self, function: Callable[..., T], name: str) -> Callable[..., T]:
        """Wrap the function so that its time counts for the part ``name``; returns it unchanged if disabled."""
        if not self.enabled:
            return function

        def timed(*arguments: Any, **keywords: Any) -> T:
            with self._timed(name):
                return function(*arguments, **keywords)

        return timed

    def batches(self, source: Iterable[T]) -> Iterable[T]:
        """Yield the batches; waiting for them counts as ``data``."""
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
        """Count a finished step; return the table when it is time to show it for the first time."""
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
        """Return the number of ``steps``, and seconds per ``step`` and of its ``parts`` with the ``rest``; None if off."""
        if not self.enabled:
            return None
        steps = max(1, self._steps)
        parts = {name: seconds / steps for name, seconds in self._seconds.items()}
        whole = self._total / steps
        parts["rest"] = max(0.0, whole - sum(parts.values()))
        return {"steps": self._steps, "step": round(whole, 6), "parts": {k: round(v, 6) for k, v in parts.items()}}

    def table(self) -> str:
        """Format the result: one line per part with milliseconds and percentages."""
        result = self.result()
        if result is None or not result["steps"]:
            return "Profile: no step was measured; the first steps are left out."
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
