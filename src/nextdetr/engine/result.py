"""What a training returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nextdetr.engine.curves import html_curves
from nextdetr.inference.notebook import html_table, html_text

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

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the best validation, and the curves of the run as far as its folder has them."""
        metrics = {name: value for name, value in self.best.get("metrics", {}).items() if value is not None}
        title = f"<p>{html_text(self.checkpoint)}: best of {self.epochs} epochs is {html_text(self.best.get('epoch'))}</p>"
        return (
            title + html_table(tuple(metrics), [tuple(metrics.values())]) + html_curves(Path(self.output) / "metrics.csv")
        )
