"""What is kept of a detector's maps to be drawn; no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FeatureMap"]


@dataclass(frozen=True, slots=True)
class FeatureMap:
    """What is drawn of one map of one image.

    Attributes:
        kind: ``stage`` (of the backbone) or ``level`` (of the fusion: what the decoder reads).
        position: of the stage or level, from 1, the finest first.
        row: number of the row that yields it.
        name: the row's name.
        stride: pixels of the input that a place of the map stands for.
        channels: C, of which ``chosen`` are drawn.
        chosen: indices of the channels of highest variance over the map's places, the highest first.
        maps: [len(chosen), H, W] float32, their values.
        mean: [H, W] float32, the mean over all C channels.
    """

    kind: str
    position: int
    row: int
    name: str
    stride: int
    channels: int
    chosen: list[int]
    maps: NDArray[np.float32]
    mean: NDArray[np.float32]

    @property
    def title(self) -> str:
        """The title above the grid."""
        kind = f"backbone stage {self.position}" if self.kind == "stage" else f"fusion level {self.position}"
        height, width = self.mean.shape
        return (
            f"{kind}: row {self.row} {self.name}, stride {self.stride}, {self.channels} channels, {width} x {height} places"
        )
