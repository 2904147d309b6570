"""Decode images from requests: anything else, or too large an image, is refused before decoding."""

from __future__ import annotations

import re

from PIL import Image, UnidentifiedImageError

from nextdetr.errors import DataError
from nextdetr.files import path_text
from nextdetr.pictures import open_encoded
from nextdetr.preprocess import Reading, check_bits, upright_rgb
from nextdetr.serve.errors import ServeError

__all__ = ["EXTENSIONS", "decode", "file_extension", "open_checked"]

#: Supported formats, by Pillow's names, and their file suffixes. Formats without a signature (TGA) would match any bytes;
#: Pillow's other formats are not sent by cameras, phones or browsers.
EXTENSIONS = {
    "AVIF": "avif", "BMP": "bmp", "DIB": "bmp", "GIF": "gif", "HEIF": "heic", "JPEG": "jpg", "JPEG2000": "jp2",
    "MPO": "jpg", "PNG": "png", "PPM": "ppm", "TIFF": "tif", "WEBP": "webp",
}  # fmt: skip
#: A progressive JPEG is decoded once per scan; ten are usual, but a small file may hold thousands.
MOST_SCANS = 100
MOST_MARKERS = 10_000
#: A marker that a length follows: 0 and the restart markers D0 to D7 belong to the compressed data.
_MARKER = re.compile(rb"\xff+([^\x00\x01\xd0-\xd8\xff])", re.DOTALL)
_END, _SCAN = b"\xd9", b"\xda"
_HEIC = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypheim", b"ftyphevc")


def open_checked(content: bytes, name: str, max_pixels: int) -> Image.Image:
    """Open an image lazily; only its header is read.

    Args:
        content: the whole file.
        name: for messages.
        max_pixels: maximum number of pixels.

    Raises:
        ServeError: it is not an image (422), or has too many pixels (413).
    """
    if not content:
        raise ServeError(422, f"{name} is empty.")
    try:
        image = open_encoded(content, EXTENSIONS)
    except UnidentifiedImageError:
        if content[4:12] in _HEIC:
            raise ServeError(
                415,
                f"{name} is a HEIC picture, for which this server needs pillow-heif: send a JPEG.",
            ) from None
        raise ServeError(
            422, f"{name} is not an image that can be read (JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000 or PPM)."
        ) from None
    except Exception as error:  # Pillow's readers raise almost anything on damaged files
        raise _damaged(name, error) from error
    width, height = image.size
    if width < 1 or height < 1:
        raise ServeError(422, f"{name} has no pixels.")
    if width * height > max_pixels:
        raise ServeError(
            413, f"{name} is too large: {width} x {height} are {width * height:,} pixels, and the limit is {max_pixels:,}."
        )
    if image.format in ("JPEG", "MPO") and _has_many_scans(content):
        raise ServeError(422, f"{name} has more scans than any real JPEG: save it again.")
    return image


def _has_many_scans(content: bytes) -> bool:
    """Whether a JPEG has more than ``MOST_SCANS``; what follows its end, as a moving picture's video, does not count."""
    place = scans = 0
    for _ in range(MOST_MARKERS):
        marker = _MARKER.search(content, place)
        if marker is None or marker[1] == _END:
            return False
        scans += marker[1] == _SCAN
        if scans > MOST_SCANS:
            return True
        place = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2])
    return True


def decode(content: bytes, name: str, reading: Reading) -> Image.Image:
    """Return an image as upright 8-bit RGB.

    Raises:
        ServeError: it is not an image (422), damaged (422), or too large (413).
    """
    try:
        with open_checked(content, name, reading.max_pixels) as image:
            check_bits(image, reading.bits, "it")
            return upright_rgb(image, reading.bits)
    except (ServeError, MemoryError):
        raise
    except DataError as error:
        raise ServeError(422, f"{name}: {path_text(str(error))}") from error
    except Exception as error:  # likewise
        raise _damaged(name, error) from error


def file_extension(image: Image.Image) -> str:
    """Return the file suffix, without a dot, of an opened image's format."""
    return EXTENSIONS.get(image.format or "", "bin")


def _damaged(name: str, error: Exception) -> ServeError:
    reason = " ".join((str(error) or type(error).__name__).split()).rstrip(". ")
    return ServeError(422, f"{name} cannot be read: {path_text(reason)}.")
