"""Image files: which formats are supported, how they are opened, and why others are not.

Pillow decodes them. Its guard against decompression bombs is process-wide; here the maximum size is an argument, so that
tiles can be cut from larger images without affecting other code of the process.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from nextdetr.errors import DataError
from nextdetr.installation import install_command

__all__ = [
    "HEIF_SUFFIXES",
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "NAMED_SUFFIXES",
    "RAW_SUFFIXES",
    "Encoded",
    "count_frames",
    "is_picture",
    "is_picture_name",
    "kind_of",
    "not_here",
    "open_encoded",
    "open_in_memory",
    "open_picture",
    "scaled_by",
]

#: Maximum pixels of an image that is read at once: Pillow's own limit.
MAX_PIXELS = 178_956_970

#: Lower-case suffixes by which a file in a folder counts as an image; a file given explicitly may have any.
IMAGE_SUFFIXES = frozenset(
    f".{ending}"
    for ending in (
        *("avif", "bmp", "dib", "gif", "jfif", "jp2", "j2k", "jpe", "jpeg", "jpg", "mpo"),
        *("pbm", "pgm", "png", "pnm", "ppm", "tga", "tif", "tiff", "webp"),
    )
)
#: Images of phones, which Pillow reads with the package pillow-heif.
HEIF_SUFFIXES = frozenset((".heic", ".heif", ".hif"))
#: Both, for files that a user or a list names: without the package they are refused, not skipped.
NAMED_SUFFIXES = IMAGE_SUFFIXES | HEIF_SUFFIXES
#: Undeveloped camera files; Pillow would show the small preview that many of them contain.
RAW_SUFFIXES = frozenset(
    f".{ending}"
    for ending in (
        *("3fr", "arw", "cr2", "cr3", "crw", "dcr", "dng", "erf", "iiq", "kdc", "mef", "mos", "mrw", "nef", "nrw"),
        *("orf", "pef", "raf", "raw", "rw2", "rwl", "sr2", "srf", "srw", "x3f"),
    )
)
#: Formats whose files may hold several frames or pages; the other images of an MPO are views for depth or brightness.
_HEIF_TYPES = (b"ftypheic", b"ftypheix", b"ftypheim", b"ftypheis", b"ftyphevc", b"ftypmif1", b"ftypmsf1")
_SEVERAL = frozenset(("AVIF", "GIF", "PNG", "TIFF", "WEBP"))


@dataclass(frozen=True, slots=True)
class Encoded:
    """An image file in memory.

    Attributes:
        content: contents of the file.
        name: name for messages and results.
    """

    content: bytes = field(repr=False)
    name: str = "image"


def is_picture(path: Path) -> bool:
    """Whether a file of a folder is used: by its name, and if it exists."""
    return is_picture_name(path.name) and path.is_file()


def is_picture_name(name: str) -> bool:
    """Whether a file counts as an image by its name: by its suffix, and unless it is hidden."""
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - there may be a million names
    return not name.startswith(".") and (suffix in IMAGE_SUFFIXES or (suffix in HEIF_SUFFIXES and _has_heif()))


def kind_of(path: str | Path) -> str | None:
    """Return the kind of an unsupported image file, ``heic`` or ``raw``; None if it is neither."""
    suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122
    if suffix in HEIF_SUFFIXES and not _has_heif():
        return "heic"
    return "raw" if suffix in RAW_SUFFIXES else None


def open_picture(path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open a file lazily, in any format that Pillow decodes itself; not EPS, for which it would run Ghostscript.

    Args:
        path: the file.
        max_pixels: maximum number of pixels.

    Raises:
        DataError: the image is too large, or of a kind that needs another program first.
        UnidentifiedImageError: it is not an image.
        OSError: the file cannot be read.
    """
    kind = kind_of(path)
    if kind == "heic":
        raise _heif_missing(str(path))
    if kind == "raw":
        raise DataError(f"{path} is a camera's raw file: develop it first, and save it as JPEG or TIFF.")
    return _not_too_large(_identified(path), str(path), max_pixels)


def open_in_memory(source: Encoded, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Like ``open_picture``, for a file in memory; a format without a signature (TGA) is not recognised.

    Raises:
        DataError: it is too large, or HEIC without the package for it.
        UnidentifiedImageError: it is not an image.
    """
    try:
        image = open_encoded(source.content, None)
    except UnidentifiedImageError:
        if source.content[4:12] in _HEIF_TYPES and not _has_heif():
            raise _heif_missing(source.name) from None
        raise
    return _not_too_large(image, source.name, max_pixels)


def not_here(kind: str) -> str:
    """Return what an unsupported kind of images (see ``kind_of``) is called, and what to do about it."""
    return {"heic": f"HEIC ({install_command('heif')})", "raw": "camera raw (develop first)"}[kind]


def _heif_missing(name: str) -> DataError:
    return DataError(
        f"{name} is a HEIC picture, for which a package is missing: {install_command('heif')}, or save it as JPEG."
    )


def _not_too_large(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    width, height = image.size
    if width * height > max_pixels:
        image.close()
        raise DataError(
            f"{name} is too large: {width} x {height} are {width * height:,} pixels, and the limit is {max_pixels:,}. "
            "Shrink it or cut it up; nextdetr predict looks at it in tiles (--tile 640), or takes a higher --max-pixels."
        )
    return image


def count_frames(source: Path | Encoded) -> int:
    """Return the number of frames or pages in a file, of which only the first is read; 1 if unknown."""
    try:
        with _identified(source) if isinstance(source, Path) else open_encoded(source.content, None) as image:
            return max(1, int(getattr(image, "n_frames", 1))) if image.format in _SEVERAL else 1
    except Exception:  # noqa: BLE001 - Pillow's decoders raise nearly everything on damaged files
        return 1


def open_encoded(content: bytes, formats: Collection[str] | None) -> Image.Image:
    """Open an in-memory image lazily, without a limit on its size: check ``size`` before loading it.

    Args:
        content: contents of the file.
        formats: Pillow's names of the formats to try ("JPEG", "PNG", …); None for all.

    Raises:
        UnidentifiedImageError: it is not an image in these formats.
    """
    if (formats is None or "HEIF" in formats) and _has_heif():
        _register_heif()
    return _first(content[:16], lambda: BytesIO(content), "the content", formats)


def _identified(path: Path) -> Image.Image:
    """Do what ``Image.open`` does, without its guard."""
    if path.suffix.lower() in HEIF_SUFFIXES:
        _register_heif()
    with path.open("rb") as file:
        prefix = file.read(16)
    return _first(prefix, lambda: str(path), str(path))  # opened, and closed, by the image


def _first(prefix: bytes, source: Callable[[], Any], name: str, formats: Collection[str] | None = None) -> Image.Image:
    """Open ``source`` with the first reader that recognises its first 16 bytes."""
    for register in (Image.preinit, Image.init):  # the usual formats, then all, which takes a while the first time
        register()
        for kind in Image.ID:
            if kind == "EPS" or (formats is not None and kind not in formats):
                continue
            factory, accept = Image.OPEN[kind]
            try:
                answer = accept is None or accept(prefix)
                if not answer or isinstance(answer, str):  # text says why Pillow cannot decode it
                    continue
                image: Image.Image = factory(source(), "")
            except (SyntaxError, IndexError, TypeError, struct.error):
                continue
            return image
    raise UnidentifiedImageError(f"cannot identify image file {name}")


def scaled_by(image: Image.Image) -> float:
    """Return what Pillow multiplies the 16-bit values of a lazily opened file by; 1 for all formats but PGM.

    A PGM file states its largest value. Pillow's own decoders of it, whose last argument that is, scale it to 65535. It is
    kept in ``info``, as the image may be passed again when it is decoded.
    """
    tile = next(iter(getattr(image, "tile", ())), None)
    if tile is not None and tile[0] in ("ppm", "ppm_plain") and image.mode == "I":
        image.info["pgm_largest"] = tile[3][-1]
    return 65535 / image.info.get("pgm_largest", 65535) if image.mode == "I" else 1.0


def _has_heif() -> bool:
    return find_spec("pillow_heif") is not None


def _register_heif() -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()
