"""In-memory cache of decoded images, and the size at which images are kept.

A large photograph is decoded and shrunk to far fewer pixels than it has: at 640 px, a run sees nothing of 4000. Shrinking
is a property of the data set, not of the cache, so a sample is the same whether or not its image was cached.
"""

from __future__ import annotations

import mmap
import multiprocessing
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nextdetr.data.records import ImageRecord

__all__ = ["ImageCache", "cache_bytes", "shrink", "shrunk_size"]


def shrunk_size(width: int, height: int, limit: int | None) -> tuple[int, int]:
    """Return the size in pixels at which an image is kept: its shorter side at most ``limit``, its shape unchanged."""
    if limit is None or min(width, height) <= limit:
        return width, height
    scale = limit / min(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def shrink(image: Image.Image, limit: int | None) -> Image.Image:
    """Return the image at its ``shrunk_size``; the filter averages all pixels that fall into one."""
    size = shrunk_size(*image.size, limit)
    return image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)


def cache_bytes(extents: Iterable[tuple[int, int]], limit: int | None = None) -> int:
    """Memory for decoded images of these (width, height), shrunk to ``limit``: a byte per channel and pixel, and a flag."""
    sizes = (shrunk_size(width, height, limit) for width, height in extents)
    return sum(3 * width * height + 1 for width, height in sizes)


class ImageCache:
    """Decoded images in memory shared by forked loader processes: the first process to decode an image stores it for all.

    Anonymous shared memory needs no space in ``/dev/shm``, and pages take memory only once they are written. If processes
    are spawned instead of forked (Windows, macOS), each gets an empty cache of its own.

    Args:
        sizes: (width, height) of each image.
    """

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        self._sizes = sizes
        lengths = np.array([width * height * 3 for width, height in sizes], dtype=np.int64)
        self._offsets = len(sizes) + np.concatenate(([0], np.cumsum(lengths)))  # a flag per image comes first
        self._memory = np.frombuffer(mmap.mmap(-1, max(int(self._offsets[-1]), 1)), dtype=np.uint8)
        # The lock also orders memory: on ARM a flag could become visible before its pixels.
        self._lock = multiprocessing.Lock()

    @classmethod
    def for_records(cls, records: Sequence[ImageRecord], budget: int, limit: int | None = None) -> ImageCache | None:
        """Return a cache for all images, or None if they need more than ``budget`` bytes or there are none.

        Args:
            records: the images.
            budget: memory in bytes.
            limit: shorter side to which the images are shrunk, in pixels; None keeps their size.
        """
        sizes = [shrunk_size(record.width, record.height, limit) for record in records]
        return cls(sizes) if sizes and cache_bytes(sizes) <= budget else None

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageCache, (self._sizes,)

    def get(self, index: int) -> NDArray[np.uint8] | None:
        """Return image ``index`` as [H, W, 3], a read-only view, or None if it is not cached yet."""
        with self._lock:
            present = bool(self._memory[index])
        return self._view(index) if present else None

    def put(self, index: int, pixels: NDArray[np.uint8]) -> None:
        """Store [H, W, 3] ``pixels``; an image of an unexpected size is not stored."""
        view = self._view(index)
        if pixels.shape != view.shape:
            return
        view[...] = pixels
        with self._lock:
            self._memory[index] = 1

    def _view(self, index: int) -> NDArray[np.uint8]:
        width, height = self._sizes[index]
        return self._memory[self._offsets[index] : self._offsets[index + 1]].reshape(height, width, 3)
