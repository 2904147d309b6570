"""Settings of ``nextdetr graft``."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, model_validator

from nextdetr.config_base import (
    ClipNorm,
    CommandConfig,
    CropMin,
    Device,
    Flat,
    Flip,
    ImageFolders,
    Log,
    Minutes,
    Precision,
    Resume,
    Warmup,
    WeightDecay,
)  # fmt: skip

__all__ = ["GraftConfig"]


class GraftConfig(CommandConfig):
    """Settings of ``nextdetr graft``; it runs in one process."""

    alternatives: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"epochs", "minutes"}),)
    devices: ClassVar[int] = 1
    accelerator: ClassVar[str] = "auto"

    detector: str | None = Field(
        None, description="Detector: checkpoint, folder of a run, weights of another program, or name."
    )
    backbone: str | None = Field(
        None, description="New backbone, such as convnextv2-atto; =WEIGHTS (file or name) after it loads its weights."
    )
    images: ImageFolders = ()
    epochs: int | None = Field(
        None,
        ge=1,
        description="Passes over the images (default: as many as show 20,000 images, unless --minutes is given).",
    )
    minutes: Minutes = None
    image_size: int | None = Field(None, ge=1, description="Side of the square input, pixels (default: the detector's).")
    multi_scale: bool = Field(True, description="Vary the input size from 0.75 to 1.25 of --image-size.")
    batch_size: int = Field(8, ge=1, description="Images per step.")
    seed: int = Field(0, ge=0, lt=2**63, description="Random seed of initialisation, order and crops.")
    output: Path | None = Field(None, description="Folder of the run (default: runs/graft-BACKBONE).")
    resume: Resume = None
    device: Device = None
    precision: Precision = "32-true"
    workers: int = Field(1, ge=0, description="Processes that load and crop images; 0: the main process.")
    cache_gigabytes: float = Field(2.0, ge=0, description="Memory for decoded images; used only if all of them fit.")
    learning_rate: float = Field(
        8e-4, gt=0, description="Peak learning rate of AdamW for the backbone and the new convolutions."
    )
    head_rate_factor: float = Field(0.1, ge=0, description="Learning rate of the old head as a factor; 0 freezes it.")
    maps_weight: float = Field(1.0, ge=0, description="Weight of the feature-map loss.")
    places_weight: float = Field(1.0, ge=0, description="Weight of the class, box and edge losses.")
    weight_decay: WeightDecay = 1e-4
    clip_norm: ClipNorm = 1.0
    warmup: Warmup = 0.05
    flat: Flat = 0.5
    crop_min: CropMin = 0.4
    flip: Flip = 0.5
    ema_decay: float = Field(0.9999, ge=0, lt=1, description="Maximum decay of the averaged weights (EMA), which are kept.")
    log: Log = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.maps_weight == 0 and self.places_weight == 0:
            raise ValueError("--maps-weight and --places-weight are both 0, so that nothing is learnt")
        return self
