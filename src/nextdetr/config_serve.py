"""Settings of ``nextdetr serve``."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from nextdetr.confidence import AUTO
from nextdetr.config_base import CommandConfig, Device, ModelWeights, PartialWeights

__all__ = ["ServeConfig", "is_loopback"]

_ORIGIN = re.compile(r"https?://[^/\s?#]+|\*")


class ServeConfig(CommandConfig):
    """Settings of ``nextdetr serve``."""

    host: str = Field("127.0.0.1", description="Address to listen on; other than this computer's own it needs a key.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0: any free port.")
    batch: int = Field(8, ge=1, description="Maximum batch size, over several requests.")
    wait: float = Field(0.0, ge=0, le=1000, description="Milliseconds that a batch waits for more images.")
    queue: int = Field(64, ge=1, description="Maximum number of images waiting; further ones are refused (503).")
    parallel: int = Field(1, ge=1, le=64, description="Batches that a model computes at the same time.")
    threads: int | None = Field(None, ge=1, description="CPU threads per batch (default: the runtime's).")
    api_key: str | None = Field(
        None, description="Key that requests must send; other users can see it in the process list."
    )
    api_key_file: Path | None = Field(None, description="File of keys, one per line.")
    cors_origins: tuple[str, ...] = Field(
        (), description="Other web sites whose pages may call the server (https://example.org)."
    )
    corrections: Path | None = Field(None, description="Folder for corrected images, which nextdetr train reads.")
    allow_reload: bool = Field(False, description="Let requests reload a model from its file.")
    confidence: Literal["auto", "calibrated"] | Annotated[float, Field(ge=0, le=1)] = Field(
        AUTO,
        description="Minimum score; auto: the detector's own for each class, else 0.3; calibrated: the one of "
        "nextdetr calibrate.",
    )
    max_detections: int = Field(300, ge=1, description="Maximum number of detections per image.")
    merge_iou: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Drop boxes that overlap a better one of their class by more than this IoU (default: keep all).",
    )
    image_size: int | None = Field(None, ge=1, description="Side of the square input, pixels (default: the model's).")
    max_bytes: int = Field(32 * 2**20, ge=1, description="Maximum bytes per request.")
    max_pixels: int = Field(64_000_000, ge=1, description="Maximum pixels per image.")
    max_images: int = Field(16, ge=1, description="Maximum images per request.")
    timeout: float = Field(30.0, gt=0, description="Seconds until a request that is not sent and answered is refused.")
    device: Device = None
    weights: ModelWeights = None
    allow_partial: PartialWeights = False

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_commas(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        return tuple(part.strip().rstrip("/") for item in value for part in str(item).split(",") if part.strip())

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        wrong = next((origin for origin in self.cors_origins if not _ORIGIN.fullmatch(origin)), None)
        if wrong is not None:
            raise ValueError(f"--cors-origins takes web sites as https://example.org, not {wrong}")
        if self.api_key is not None and self.api_key_file is not None:
            raise ValueError("--api-key and --api-key-file both set the key; give one of them")
        return self


def is_loopback(host: str) -> bool:
    """Whether an address is this computer's own, unreachable from others."""
    if host.rstrip(".").lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
