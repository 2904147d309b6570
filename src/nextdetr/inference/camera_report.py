"""What of a fixed camera's frames was computed; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nextdetr.json_text import short_number

__all__ = ["CameraReport"]


@dataclass(slots=True)
class CameraReport:
    """What of the frames was computed with ``--static-camera``.

    Attributes:
        frames: looked at.
        full: of these, computed in full.
        unchanged: of these, those in which nothing had changed, so that the last result stands.
        computed: sum of the frames' shares of computed patches.
        largest_drift: how far the stored maps of a patch were from those of a regular full frame, at most: root mean
            square, relative to the map's. None without any: full frames after much motion, such as a cut, do not count.
    """

    frames: int = 0
    full: int = 0
    unchanged: int = 0
    computed: float = 0.0
    largest_drift: float | None = None

    def add(self, share: float, drift: float | None = None) -> None:
        """Count a frame of which this share of the patches was computed, 0 to 1; of a full one, with its drift."""
        self.frames += 1
        self.full += share == 1.0
        self.unchanged += share == 0.0
        self.computed += share
        if drift is not None:
            self.largest_drift = max(drift, self.largest_drift or 0.0)

    def to_json(self) -> dict[str, Any]:
        """Return its part of the JSON result."""
        return {
            "frames": self.frames, "full_frames": self.full, "unchanged_frames": self.unchanged,
            "computed_share": short_number(self.computed / max(1, self.frames)),
            "largest_drift": None if self.largest_drift is None else short_number(self.largest_drift),
        }  # fmt: skip

    def __str__(self) -> str:
        drift = "not measured" if self.largest_drift is None else f"{self.largest_drift:.1%}"
        return (
            f"{self.frames} frames, {self.full} computed in full, {self.unchanged} unchanged; "
            f"{self.computed / max(1, self.frames):.0%} of the patches computed; largest drift {drift}"
        )
