"""Result of a training."""

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
        epochs: epochs trained, over all sessions of the run.
        seconds: wall-clock time, over all sessions of the run.
        images_per_second: training images per second of wall-clock time, validation included.
        best: ``epoch`` and ``metrics`` of the best validation.
        checkpoint: file of the best weights.
        profile: with ``--profile``: number of ``steps``, seconds per ``step`` and its ``parts``; else None and left out.
        speed: with ``--latency``: the table (see ``SpeedTable``); else None and left out.
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
