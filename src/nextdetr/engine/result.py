"""What a training returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["TrainResult"]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What ``train`` returns; the fields of the JSON result.

    Attributes:
        output: the run's folder.
        epochs: epochs trained, all sessions of the run.
        seconds: wall-clock, all sessions of the run.
        images_per_second: training images by wall-clock, validation included.
        best: ``epoch`` and ``metrics`` of the best validation.
        checkpoint: file with the best weights.
        profile: with ``--profile``: ``steps`` measured, seconds a ``step``, and of its ``parts``; else None, and not shown.
        speed: with ``--latency``: the table (see ``SpeedTable``); else None, and not shown.
    """

    output: str
    epochs: int
    seconds: float
    images_per_second: float
    best: dict[str, Any]
    checkpoint: str
    profile: dict[str, Any] | None = None
    speed: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON result of the command."""
        values = {
            name: value for name, value in asdict(self).items() if name not in ("profile", "speed") or value is not None
        }
        return {"command": "train", **values}
