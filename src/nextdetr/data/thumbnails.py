"""Images at a small size and in grey, to compare many of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from nextdetr.pictures import open_picture, scaled_by
from nextdetr.preprocess import AS_EVER, Reading, load_image

__all__ = ["in_its_range", "read_thumbnail"]


def read_thumbnail(
    path: Path, side: int, *, decoded: int, reading: Reading = AS_EVER, upright: bool = True
) -> NDArray[np.uint8]:
    """Read an image as [side, side] grey levels, stretched to a square; a JPEG is decoded at a fraction of its size.

    Args:
        path: the file.
        side: side of the thumbnail in pixels.
        decoded: least shorter side, in pixels, to which a JPEG is decoded.
        reading: how it is read.
        upright: apply the EXIF orientation of a JPEG; that of other formats is always applied.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with Image.open(path, formats=("JPEG",)) as image:
            image.draft("L", (decoded, decoded))
            grey = image.convert("L")
            grey = ImageOps.exif_transpose(grey) if upright else grey
    except Exception:  # noqa: BLE001 - another format, or an EXIF block or pixels that Pillow's decoders stumble over
        grey = load_image(path, in_its_range(path, reading)).convert("L")
    return np.asarray(grey.resize((side, side), Image.Resampling.BOX))


def in_its_range(path: Path, reading: Reading = AS_EVER) -> Reading:
    """Return how to read an image that is only looked at: 16-bit grey of which few bits are used would be black.

    Args:
        path: the file.
        reading: how it is read otherwise; if it has fewer than 16 bits, these count.
    """
    if reading.bits < 16:
        return reading
    try:
        with open_picture(path, reading.max_pixels) as image:
            if image.mode != "I" and not image.mode.startswith("I;16"):
                return reading
            scale = scaled_by(image)
            largest = round(int(np.asarray(image).max()) / scale)
    except Exception:  # noqa: BLE001 - reading the image tells what is wrong
        return reading
    return replace(reading, bits=min(16, max(8, largest.bit_length())))
