"""The settings of ``nextdetr calibrate``."""

from __future__ import annotations

from pydantic import Field

from nextdetr.config_base import CommandConfig, Device, OnBadData

__all__ = ["CalibrateConfig"]


class CalibrateConfig(CommandConfig):
    """Settings of ``nextdetr calibrate``."""

    data: str | None = Field(None, description="Data set in any known format: folder or file.")
    recall: float = Field(0.95, gt=0, lt=1, description="Share of objects to find, on average over new images.")
    split: str = Field("test", description="Split that was used to choose neither weights nor thresholds.")
    iou: float = Field(0.5, gt=0, lt=1, description="Minimum IoU of box and detection for an object to count as found.")
    unlike: float = Field(
        0.05, gt=0, lt=1, description="Maximum share of images like those of the split that are flagged as unlike training."
    )
    training_images: int = Field(
        2000, ge=8, description="Maximum number of training images to learn their appearance from."
    )
    batch_size: int = Field(8, ge=1, description="Images per step.")
    on_bad_data: OnBadData = "warn"
    device: Device = None
