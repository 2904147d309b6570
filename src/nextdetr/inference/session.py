"""What a runtime offers once it has opened an exported file; no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from nextdetr.errors import ModelFileError

__all__ = ["Arrays", "Port", "Session", "reason"]

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output as the runtime sees it.

    Attributes:
        kind: type of its numbers (``float32``, ``uint8``, ``int64``, …).
        shape: its sides, None where a side is free; None where even their number is not known.
    """

    kind: str
    shape: tuple[int | None, ...] | None


class Session(ABC):
    """A file opened in its runtime; several threads may run it at once.

    Attributes:
        name: of the runtime.
        source: the file, for messages.
        inputs: by name.
        outputs: by name, in the file's order.
    """

    name: str
    source: str
    inputs: Mapping[str, Port]
    outputs: Mapping[str, Port]

    def run(self, inputs: Arrays) -> Arrays:
        """Map inputs to outputs, by their names.

        Raises:
            ModelFileError: the runtime refuses the input, or fails.
        """
        try:
            return self._run(inputs)
        except Exception as error:  # the runtimes' own exceptions have no base of their own
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
            raise ModelFileError(f"{self.source}: {self.name} cannot run it on {shapes} ({reason(error)}).") from error

    @abstractmethod
    def _run(self, inputs: Arrays) -> Arrays: ...


def reason(error: BaseException) -> str:
    """Return a runtime's message as part of a sentence: on one line, and no longer than can be read."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= 400 else text[:400] + "…"
