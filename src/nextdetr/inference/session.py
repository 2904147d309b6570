"""What a runtime offers once it has opened an exported file."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

__all__ = ["Arrays", "Session"]

Arrays = dict[str, NDArray[Any]]


class Session(Protocol):
    """A file opened in its runtime."""

    name: str

    def run(self, inputs: Arrays) -> Arrays:
        """Map inputs to outputs, by their names."""
        ...
