"""Settings of ``nextdetr graft``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from nextdetr.config_base import CommandConfig, Log

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
    images: tuple[str, ...] = Field((), description="Folders of images, including subfolders, or data sets.")
    epochs: int | None = Field(
        None,
        ge=1,
        description="Passes over the images (default: as many as show 20,000 images, unless --minutes is given).",
    )
    minutes: float | None = Field(None, gt=0, description="Time budget, to which the schedule adapts.")
    image_size: int | None = Field(None, ge=1, description="Side of the square input, pixels (default: the detector's).")
    multi_scale: bool = Field(True, description="Vary the input size from 0.75 to 1.25 of --image-size.")
    batch_size: int = Field(8, ge=1, description="Images per step.")
    seed: int = Field(0, ge=0, description="Random seed of initialisation, order and crops.")
    output: Path | None = Field(None, description="Folder of the run (default: runs/graft-BACKBONE).")
    resume: Path | None = Field(None, description="Folder of a stopped run to continue.")
    device: str | None = Field(None, description="Device: cpu, cuda, cuda:1, mps (default: the best available).")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field(
        "32-true", description="Floating-point precision of the model; losses are always 32-bit."
    )
    workers: int = Field(1, ge=0, description="Processes that load and crop images; 0: the main process.")
    cache_gigabytes: float = Field(2.0, ge=0, description="Memory for decoded images; used only if all of them fit.")
    learning_rate: float = Field(
        8e-4, gt=0, description="Peak learning rate of AdamW for the backbone and the new convolutions."
    )
    head_rate_factor: float = Field(0.1, ge=0, description="Learning rate of the old head as a factor; 0 freezes it.")
    maps_weight: float = Field(1.0, ge=0, description="Weight of the feature-map loss.")
    places_weight: float = Field(1.0, ge=0, description="Weight of the class, box and edge losses.")
    weight_decay: float = Field(
        1e-4, ge=0, description="Weight decay of matrices and kernels; norms, GRN and biases have none."
    )
    clip_norm: float = Field(1.0, ge=0, description="Maximum norm of the gradient; 0: no clipping.")
    warmup: float = Field(
        0.05, ge=0, lt=1, description="Share of the run in which the learning rate rises, at most 2,000 steps."
    )
    flat: float = Field(0.5, ge=0, le=1, description="Share of the run after which the learning rate falls as a cosine.")
    crop_min: float = Field(0.4, gt=0, le=1, description="Minimum share of the image area in a crop.")
    flip: float = Field(0.5, ge=0, le=1, description="Probability of mirroring left to right.")
    ema_decay: float = Field(0.9999, ge=0, lt=1, description="Maximum decay of the averaged weights (EMA), which are kept.")
    log: Log = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.epochs is not None and self.minutes is not None:
            raise ValueError("--epochs and --minutes both set the length of the run; give one of them")
        if self.maps_weight == 0 and self.places_weight == 0:
            raise ValueError("--maps-weight and --places-weight are both 0, so that nothing is learnt")
        return self

    @field_validator("images", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (str(value),) if isinstance(value, str | Path) else tuple(str(item) for item in value)
