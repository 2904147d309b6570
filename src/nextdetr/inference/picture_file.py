"""Pictures that are written: JPEG, or PNG where JPEG takes no side so long."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from PIL import Image

from nextdetr.errors import ConfigError
from nextdetr.files import atomic_write, path_text

__all__ = ["of_address", "picture_stem", "picture_suffix", "write_picture"]

_LONGEST = 100  # characters that are taken of an address
LONGEST_JPEG = 65_500  # pixels of a side, in libjpeg
_SETTINGS: dict[str, dict[str, Any]] = {
    ".jpg": {"format": "JPEG", "quality": 92}, ".jpeg": {"format": "JPEG", "quality": 92}, ".png": {"format": "PNG"},
    ".webp": {"format": "WEBP", "quality": 90}, ".bmp": {"format": "BMP"}, ".tif": {"format": "TIFF"},
    ".tiff": {"format": "TIFF"},
}  # fmt: skip


def of_address(address: str) -> str:
    """Return the path of an address, its end at most, as far as the name of a file can have it."""
    return re.sub(r"[\x00-\x1f\x7f\\:]", "_", unquote(urlsplit(address).path))[-_LONGEST:]


def picture_stem(path: str, frame: int | None = None) -> str:
    """Return how a file that is made of an image, or of a frame of a video, is called, without an ending."""
    stem = path_text(Path(of_address(path) if "://" in path else path).stem) or "image"
    return stem if frame is None else f"{stem}_{frame:06d}"


def picture_suffix(picture: Image.Image) -> str:
    """Return ``.jpg``, or ``.png`` of a picture with a side of more than 65,500 pixels, which JPEG cannot hold."""
    return ".jpg" if max(picture.size) <= LONGEST_JPEG else ".png"


def write_picture(picture: Image.Image, path: str | Path) -> Path:
    """Write a picture, whole or not at all, in the format that the name ends in; return its path.

    Raises:
        ConfigError: pictures are not written with that ending, or not of that size.
        WriteError: the file cannot be written.
    """
    path = Path(path)
    settings = _SETTINGS.get(path.suffix.lower())
    if settings is None:
        raise ConfigError(f"{path_text(path)}: a picture is saved with the ending {', '.join(_SETTINGS)}.")
    if settings["format"] == "JPEG" and picture_suffix(picture) != ".jpg":
        raise ConfigError(f"{path_text(path)}: JPEG holds at most {LONGEST_JPEG:,} pixels a side: end the name in .png.")
    with atomic_write(path) as temporary:
        picture.save(temporary, **settings)
    return path
