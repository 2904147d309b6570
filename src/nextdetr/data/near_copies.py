"""Near copies of images: grey thumbnails of 16 x 16 cells, compared by their correlation.

Cheap enough for every training: frames of one video, resized, brighter and re-encoded copies. The doctor's search
(``data/duplicates.py``), which also finds crops and mirrored copies and checks each pair, takes longer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nextdetr.data.thumbnails import read_thumbnail
from nextdetr.errors import DataError
from nextdetr.preprocess import Reading

__all__ = ["near_copies", "small_pictures", "upright_pictures"]

_SIDE = 16  # cells of the small picture
_FLAT = 4.0  # levels of 255: least variation assumed for an image
_BLOCK = 1024  # images compared with all others at once
# On BCCD a copy halved and saved as JPEG at quality 30 correlates by 0.999 with its original, a brighter one by 0.993, one
# without its outer 2 % by 0.953; different images stay below 0.76, except for one pair of neighbours.
COPY = 0.95


def small_pictures(paths: Sequence[Path]) -> NDArray[np.float32]:
    """Return thumbnails of mean 0 and norm 1, so that a product of two is their correlation; [N, 256].

    Raises:
        DataError: an image cannot be read.
    """
    # Not turned upright: what earlier runs set aside depends on these numbers, and has to be found again.
    return _normalized(paths, lambda path: read_thumbnail(path, _SIDE, decoded=4 * _SIDE, upright=False))


def upright_pictures(paths: Sequence[Path], reading: Reading) -> tuple[NDArray[np.float32], dict[Path, str]]:
    """Return thumbnails as ``small_pictures`` does, turned upright and without errors.

    Args:
        paths: N files.
        reading: how they are read.

    Returns:
        The thumbnails [N, 256], of an unreadable file zeros, which are a copy of nothing; and why a file is unreadable.
    """
    faults: dict[Path, str] = {}

    def read(path: Path) -> NDArray[np.uint8]:
        try:
            return read_thumbnail(path, _SIDE, decoded=4 * _SIDE, reading=reading)
        except DataError as error:
            faults[path] = str(error).removeprefix(str(path)).strip(" :.")
            return np.zeros((_SIDE, _SIDE), dtype=np.uint8)

    return _normalized(paths, read), faults


def near_copies(pictures: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return whether each of the thumbnails [N, 256] is a near copy of any of the others [M, 256]; [N]."""
    if not len(others):
        return np.zeros(len(pictures), dtype=np.bool_)
    blocks = [
        (pictures[start : start + _BLOCK] @ others.T).max(axis=1) >= COPY for start in range(0, len(pictures), _BLOCK)
    ]
    return np.concatenate([np.zeros(0, dtype=np.bool_), *blocks])


def _normalized(paths: Sequence[Path], read: Callable[[Path], NDArray[np.uint8]]) -> NDArray[np.float32]:
    if not paths:
        return np.zeros((0, _SIDE * _SIDE), dtype=np.float32)
    pool = ThreadPoolExecutor(max_workers=min(8, (os.cpu_count() or 1) + 1))
    try:
        small = pool.map(lambda path: read(path).astype(np.float32).ravel(), paths)
        pictures: NDArray[np.float32] = np.stack(list(small))
    finally:
        pool.shutdown(cancel_futures=True)
    pictures -= pictures.mean(axis=1, keepdims=True)
    spread = np.maximum(pictures.std(axis=1, keepdims=True), _FLAT)
    pictures /= spread * _SIDE
    return pictures
