"""The settings of ``nextdetr calibrate``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nextdetr.config_base import CommandConfig

__all__ = ["CalibrateConfig"]


class CalibrateConfig(CommandConfig):
    """Settings of ``nextdetr calibrate``."""

    data: str | None = Field(None, description="Data set of any known format: its folder or file.")
    recall: float = Field(
        0.95, gt=0, lt=1, description="Of an image's objects, at most 1 less this is missed, on the average of new images."
    )
    split: str = Field("test", description="Part of the data set that chose neither weights nor thresholds.")
    iou: float = Field(0.5, gt=0, lt=1, description="Overlap of box and detection from which on an object is found.")
    unlike: float = Field(
        0.05, gt=0, lt=1, description="Of images like those of the split, at most so many are flagged as unlike training."
    )
    training_images: int = Field(2000, ge=8, description="Most training images to learn what is like them from.")
    batch_size: int = Field(8, ge=1, description="Images a step.")
    on_bad_data: Literal["warn", "error"] = Field("warn", description="Drop unusable boxes and images, or refuse to start.")
    device: str | None = Field(None, description="Where to run: cpu, cuda, cuda:1, mps (default: the best there is).")
