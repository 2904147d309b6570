"""Images at a small size and in grey, to compare many of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from nextdetr.preprocess import AS_EVER, Reading, load_image

__all__ = ["read_thumbnail"]


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
        grey = load_image(path, reading).convert("L")
    return np.asarray(grey.resize((side, side), Image.Resampling.BOX))
