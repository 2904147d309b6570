"""From an image to the model's input, in NumPy: read, convert to RGB, resize, scale; shared by everything.

Conventions:

- A file is read as a viewer shows it: EXIF orientation applied, the first frame of an animation or of a multi-page file.
- Transparent pixels are composed onto white.
- 16-bit grey is scaled by the range of its format (65535 becomes 255), or of fewer bits if the user says so
  (``Reading.bits``), not stretched to the range of the individual image.
- The resize is square (RT-DETR, arXiv 2304.08069, does not keep the aspect ratio) with Pillow's antialiased bilinear
  filter, in two halves at once for large images; pixels become fractions, 0 to 1. For PyTorch models on x86, torch resizes
  large images (``tensors.resize_to_tensor``). Mean and standard deviation, if a model needs them, are applied inside the
  model.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from nextdetr.errors import DataError
from nextdetr.pictures import IMAGE_SUFFIXES, MAX_PIXELS, Encoded, open_in_memory, open_picture, scaled_by
from nextdetr.pixels import float_grey, from_array, from_tensor, grey, is_tensor, of_16_bits

if TYPE_CHECKING:
    import torch

__all__ = [
    "AS_EVER",
    "IMAGE_SUFFIXES",
    "ImageSource",
    "Reading",
    "as_image",
    "as_rgb",
    "check_bits",
    "encoded",
    "image_size",
    "is_image_source",
    "is_large",
    "is_pixels",
    "is_turned",
    "load_image",
    "resize_to_planes",
    "to_rgb",
    "upright_rgb",
]

ImageSource: TypeAlias = "str | Path | Image.Image | NDArray[np.generic] | torch.Tensor | bytes | Encoded | IO[bytes]"


@dataclass(frozen=True, slots=True)
class Reading:
    """Options for reading image files.

    Attributes:
        bits: significant bits of 16-bit grey images: the maximum is 2^bits - 1, and larger values are clipped. Cameras and
            scanners store 10, 12 or 14 bits in 16-bit files.
        max_pixels: maximum pixels of an image; a larger one is refused.
        orientation: EXIF orientation (1 to 8) applied to the upright image; 1 leaves it upright. For tests of a detector on
            turned images, see ``nextdetr.data.oriented``.
    """

    bits: int = 16
    max_pixels: int = MAX_PIXELS
    orientation: int = 1


AS_EVER = Reading()

_ORIENTATION, _TIFF_WIDTH, _TIFF_HEIGHT = 0x0112, 0x0100, 0x0101
_LARGE = 1 << 19  # pixels
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(path: str | Path, reading: Reading = AS_EVER) -> Image.Image:
    """Read an image file as upright 8-bit RGB.

    Args:
        path: the file.
        reading: bits, limits and orientation.

    Raises:
        DataError: the file is missing, not an image, truncated, damaged, or too large; the message names the file.
    """
    path = Path(path)
    try:
        with open_picture(path, reading.max_pixels) as image:
            method = _TRANSPOSE.get(reading.orientation)
            upright = _read(image, reading, str(path))
            return upright if method is None else upright.transpose(method)
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise _unreadable(path, error) from error


def check_bits(image: Image.Image, bits: int, name: str) -> None:
    """Refuse a lazily opened image of which the upper 8 of 16 bits are read, where fewer than 16 bits are meant.

    Raises:
        DataError: it is one; the message begins with ``name``.
    """
    stored = " ".join(str(tile[3]) for tile in getattr(image, "tile", ()))  # "RGB;16B"; "BGR;16" are 16 bits a pixel
    if bits < 16 and not _is_grey(image) and any(sign in stored for sign in (";16B", ";16L", ";16N")):
        what = "grey and transparency" if "LA;16" in stored else "colours"  # Pillow has the former as RGBA
        raise DataError(
            f"{name} has {what} of 16 bits, of which the upper 8 are read: --bits is for grey pictures. Save it with 8 "
            "bits a colour."
        )


def _read(image: Image.Image, reading: Reading, name: str) -> Image.Image:
    """Do what ``upright_rgb`` does; an error names the image."""
    check_bits(image, reading.bits, name)
    try:
        return upright_rgb(image, reading.bits)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def upright_rgb(image: Image.Image, bits: int = 16) -> Image.Image:
    """Decode a lazily opened image as upright 8-bit RGB; Pillow's decoders raise almost anything on damaged files.

    Raises:
        DataError: see ``to_rgb``.
    """
    scale = scaled_by(image)
    image.load()
    method = _TRANSPOSE.get(_orientation(image))
    return to_rgb(image if method is None else image.transpose(method), bits, scale)


def image_size(path: str | Path) -> tuple[int, int]:
    """Read (width, height) in pixels, with the EXIF orientation applied, from the file's header only.

    Raises:
        DataError: the file is missing, not an image or too large; damage after the header is not detected.
    """
    path = Path(path)
    try:
        with open_picture(path) as image:
            width, height = image.size
            return (height, width) if is_turned(image) and not _is_upright(image) else (width, height)
    except DataError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error


def is_image_source(source: Any) -> bool:
    """Whether this is a single image or path, as accepted by ``as_image``."""
    known = (str, Path, Image.Image, np.ndarray, bytes, bytearray, memoryview, Encoded)
    return isinstance(source, known) or is_tensor(source) or hasattr(source, "read")


def is_pixels(source: Any) -> bool:
    """Whether this is an array or a tensor; if one is wrong, the caller's code is, not a file."""
    return isinstance(source, np.ndarray) or is_tensor(source)


def as_image(source: ImageSource, reading: Reading = AS_EVER) -> Image.Image:
    """Return any supported source as 8-bit RGB.

    Args:
        source: a path (see ``load_image``); a PIL image, with its pixels as stored (an EXIF orientation that the caller has
            not applied is not applied here, so that boxes fit the caller's image); an array, [H, W, 3] RGB or [H, W] or [H,
            W, 1] grey, uint8 (0 to 255), uint16 (0 to 65535) or float (0 to 1); a torch tensor, channels first (see
            ``pixels.from_tensor``); or the content of an image file, as bytes, ``Encoded`` or an opened file.
        reading: limits for files, and bits for 16-bit pixels.

    Raises:
        DataError: the file cannot be read, or the array or tensor has another shape, type or range.
    """
    if isinstance(source, str | Path):
        return load_image(source, reading)
    if isinstance(source, Image.Image):
        name = str(getattr(source, "filename", "") or "the given PIL image")
        check_bits(source, reading.bits, name)
        scale = scaled_by(source)
        try:
            source.load()
            return to_rgb(source, reading.bits, scale)
        except OSError as error:  # a lazily opened file turns out to be truncated
            raise DataError(f"{name} cannot be read: {_sentence(error)}.") from error
    if isinstance(source, np.ndarray):
        return from_array(source, reading.bits)
    if is_tensor(source):
        return from_tensor(cast("torch.Tensor", source), reading.bits)
    if isinstance(source, bytes | bytearray | memoryview) or hasattr(source, "read"):
        source = encoded(cast("bytes | IO[bytes]", source))
    if isinstance(source, Encoded):
        return _decoded(source, reading)
    raise DataError(f"an image is a path, a PIL image or a numpy array, not {type(source).__name__}.")


def encoded(source: bytes | IO[bytes], name: str = "image") -> Encoded:
    """Return bytes, or the rest of an opened file, as an image file in memory.

    Raises:
        DataError: the file is opened in text mode.
    """
    content: Any = source if isinstance(source, bytes | bytearray | memoryview) else source.read()
    if isinstance(content, str):
        raise DataError(f"{name} was opened as text: open an image with the mode 'rb'.")
    return Encoded(bytes(content), name)


def _decoded(source: Encoded, reading: Reading) -> Image.Image:
    if not source.content:
        raise DataError(f"{source.name} is empty, and no image.")
    try:
        with open_in_memory(source, reading.max_pixels) as image:
            return _read(image, reading, source.name)
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise _unreadable(source.name, error) from error


def to_rgb(image: Image.Image, bits: int = 16, scale: float = 1.0) -> Image.Image:
    """Convert a PIL image of any mode to 8-bit RGB; an RGB image is returned unchanged, without a copy.

    Args:
        image: image in any mode.
        bits: significant bits of 16-bit grey: 2^bits - 1 and above become 255.
        scale: what ``scaled_by`` returned before the image was decoded.

    Raises:
        DataError: the mode has no meaning as RGB, or a floating-point image holds values outside 0 to 255.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode != "F" and _is_grey(image):
        values = np.asarray(image)  # with all 16 bits, the range is that of the format
        return grey(of_16_bits(values if scale == 1 or bits == 16 else np.rint(values / scale), bits))
    if image.mode == "F":
        return grey(float_grey(np.asarray(image)))
    try:
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, layer).convert("RGB")
        return image.convert("RGB")
    except ValueError as error:
        raise DataError(f"an image of mode {image.mode} cannot be read as RGB: convert it to RGB first.") from error


def resize_to_planes(
    image: Image.Image | NDArray[np.generic], size: int, *, threads: int | None = None
) -> NDArray[np.float32]:
    """Resize to a square and scale to fractions.

    Args:
        image: RGB PIL image, or anything else that ``as_image`` takes.
        size: side of the result in pixels (S).
        threads: with more than one, a large image is resized in two halves at once; by default as many as this process may
            use.

    Returns:
        [3, S, S] float32 RGB, 0 to 1, contiguous.
    """
    image = as_rgb(image)
    planes = np.empty((3, size, size), dtype=np.float32)
    half = size // 2
    if _may_halve(image, size) and (_threads() if threads is None else threads) > 1:
        lower = _helper().submit(_fill, planes, image, half, size)
        _fill(planes, image, 0, half)
        if lower.cancel():  # other images keep the helper busy
            _fill(planes, image, half, size)
        else:
            lower.result()
    else:
        _fill(planes, image, 0, size)
    return planes  # [3, S, S]


def as_rgb(image: Image.Image | NDArray[np.generic]) -> Image.Image:
    """Return an RGB PIL image as it is, whatever else it says of itself, and anything else by ``as_image``."""
    return image if isinstance(image, Image.Image) and image.mode == "RGB" else as_image(image)


def is_large(image: Image.Image, size: int) -> bool:
    """Whether resizing an image to this side (in pixels) takes long enough to be split, or done by a faster library."""
    return image.width * image.height >= _LARGE and image.size != (size, size)


def _threads() -> int:
    """Threads that this process may use: ``OMP_NUM_THREADS``, as in numeric libraries, or its cores."""
    stated = os.environ.get("OMP_NUM_THREADS", "")
    if stated.isdecimal():
        return int(stated)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fill(planes: NDArray[np.float32], image: Image.Image, first: int, last: int) -> None:
    """Fill rows ``first`` to ``last`` - 1 of a resized image, as fractions.

    Pillow's filter reaches beyond the box, so a part has the same rows as the whole; ``_may_halve`` says when exactly.
    """
    size = planes.shape[1]
    if image.size != (size, size):
        box = (0, first * image.height / size, image.width, last * image.height / size)
        image = image.resize((size, last - first), Image.Resampling.BILINEAR, box=box)
    for plane, band in zip(planes, image.split(), strict=True):  # half the time of a transposing copy
        np.divide(np.asarray(band), np.float32(255), out=plane[first:last])


def _may_halve(image: Image.Image, size: int) -> bool:
    """Whether an image is large, and its lower half, resized separately, has exactly the rows of the whole.

    Pillow samples row y at (y + 0.5) * height / size from the upper edge of the box. If that is a fraction with a power of
    two, nothing is rounded; otherwise the last digit may differ, and values between two grey levels fall to either. Pillow
    13 resizes columns before rows if the height shrinks by more than twice as many pixels as the width, which rounds
    differently, so the halves must use the order of the whole.
    """
    denominator = size // math.gcd(image.height, size)
    orders = {image.height - rows > max(0, 2 * (image.width - size)) for rows in (size, size // 2, size - size // 2)}
    return is_large(image, size) and len(orders) == 1 and denominator & (denominator - 1) == 0


@cache
def _helper() -> ThreadPoolExecutor:
    """A second thread for resizing; Pillow releases Python's lock."""
    return ThreadPoolExecutor(1, thread_name_prefix="nextdetr-resize")


if hasattr(os, "register_at_fork"):  # a forked process has the executor, but not its thread
    os.register_at_fork(after_in_child=_helper.cache_clear)


def _is_grey(image: Image.Image) -> bool:
    """Whether an image has one channel of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def is_turned(image: Image.Image) -> bool:
    """Whether an opened file is displayed with width and height swapped: its EXIF orientation is 5 to 8."""
    return _orientation(image) >= 5


def _is_upright(image: Image.Image) -> bool:
    """Whether Pillow has already swapped the size on opening, as for TIFF, which it also rotates on loading."""
    tags = getattr(image, "tag_v2", None)
    return tags is not None and image.size != (tags.get(_TIFF_WIDTH), tags.get(_TIFF_HEIGHT))


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 if the tag is absent or the EXIF block is damaged (the pixels may still be good)."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - Pillow's EXIF parser raises struct, value, syntax and key errors alike
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _unreadable(path: str | Path, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: there is no such image file.")
    if isinstance(error, IsADirectoryError):
        return DataError(f"{path} is a folder, not an image file.")
    if isinstance(error, UnidentifiedImageError):
        return DataError(f"{path} is not an image that can be read (unknown format, empty, or damaged at its start).")
    if isinstance(error, Image.DecompressionBombError):
        return DataError(
            f"{path} is too large for Pillow's reader of its format: {_sentence(error)}. Save it as PNG or TIFF."
        )
    return DataError(f"{path} cannot be read: {_sentence(error)}.")


def _sentence(error: Exception) -> str:
    return (str(error) or type(error).__name__).rstrip(". ")
