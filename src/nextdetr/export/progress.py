"""How far an export is: an interface to the engine's display, which exports do not import."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeAlias

__all__ = ["Bar", "Progress", "silent"]


class Bar(Protocol):
    """A progress bar, and lines above it."""

    def line(self, text: str) -> None:
        """Print a permanent line."""

    def update(self, description: str, done: float, note: str) -> None:
        """Update the bar; ``done`` is a fraction, 0 to 1."""


#: Opens a bar for a part of the work.
Progress: TypeAlias = Callable[[], AbstractContextManager[Bar]]


class _Silent:
    def line(self, text: str) -> None:
        pass

    def update(self, description: str, done: float, note: str) -> None:
        pass


def silent() -> AbstractContextManager[Bar]:
    """Open a bar that shows nothing."""
    return nullcontext(_Silent())
