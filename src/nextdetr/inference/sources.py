"""What to predict on: files, folders, glob patterns, PIL images, arrays, and any mixture of them."""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from PIL import Image

from nextdetr.errors import DataError
from nextdetr.preprocess import IMAGE_SUFFIXES, ImageSource

__all__ = ["SourceItem", "Sources", "find_images", "read_ahead", "reading_threads"]

Sources: TypeAlias = ImageSource | Iterable[ImageSource]

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class SourceItem:
    """One image to look at.

    Attributes:
        path: its path as text; for an image in memory, the file name that PIL knows, or "image-1", "image-2", … by its
            position.
        image: the path, PIL image or array.
    """

    path: str
    image: ImageSource

    @property
    def in_memory(self) -> bool:
        """Whether the caller handed over pixels rather than the name of a file."""
        return not isinstance(self.image, str | Path)


def find_images(sources: Sources) -> Iterable[SourceItem]:
    """List the images that are meant.

    A folder means the image files in it, in the order of their names, not those in its subfolders (``folder/**/*.jpg``
    finds these). Hidden files and other kinds of file are passed over in folders and patterns. A name that exists is never
    taken for a pattern, whatever characters it has.

    Args:
        sources: a path, folder, glob pattern, PIL image or array, or several of these. Lists and tuples are looked through
            at once; any other iterable is drawn from as it is consumed.

    Raises:
        DataError: a file or folder does not exist, a folder holds no image, or a pattern matches none.
    """
    if isinstance(sources, str | Path | Image.Image | np.ndarray):
        sources = [sources]
    if not isinstance(sources, Iterable):
        raise DataError(f"images come as paths, PIL images, arrays or a list of them, not as {type(sources).__name__}.")
    found = _find(sources)
    if not isinstance(sources, list | tuple):
        return found
    items = list(found)
    if not items:
        raise DataError("there is no image to look at: the list of sources is empty.")
    return items


def read_ahead(items: Iterable[T], read: Callable[[T], R], *, ahead: int, threads: int) -> Iterator[R]:
    """Map ``read`` over ``items`` in order, with at most ``ahead`` results waiting; without threads, one at a time."""
    if threads < 1:
        yield from map(read, items)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="nextdetr-read")
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def reading_threads(device: torch.device) -> int:
    """Threads that decode images: none on the CPU, whose cores the model fills by itself."""
    return 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)


def _find(sources: Iterable[ImageSource]) -> Iterator[SourceItem]:
    position = 0
    for source in sources:
        for item in _expand(source, position + 1):
            position += 1
            yield item


def _expand(source: ImageSource, position: int) -> Iterator[SourceItem]:
    if not isinstance(source, str | Path):
        if not isinstance(source, Image.Image | np.ndarray):
            raise DataError(f"source {position} is neither a path, a PIL image nor an array but {type(source).__name__}.")
        name = str(getattr(source, "filename", "") or f"image-{position}")
        yield SourceItem(name, source)
        return
    path = Path(source).expanduser()
    if path.is_dir():
        files = _images_in(path)
    elif path.exists():
        files = [path]
    elif glob.has_magic(str(source)):
        files = _matching(str(path))
    elif "://" in str(source):
        raise DataError(f"{source} is an address on the web: download the image and name the file.")
    else:
        raise DataError(f"{source}: there is no such file or folder.")
    for file in files:
        yield SourceItem(str(file), file)


def _images_in(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if _is_image(path))
    if not files:
        hint = ""
        if any(_is_image(path) for path in folder.glob("*/*")):
            hint = f'; its subfolders do: "{folder}/**/*" takes them in'
        raise DataError(f"the folder {folder} holds no image{hint}.")
    return files


def _matching(pattern: str) -> list[Path]:
    files = sorted(path for path in map(Path, glob.glob(pattern, recursive=True)) if _is_image(path))  # noqa: PTH207
    if not files:
        raise DataError(f"no image matches {pattern}.")
    return files


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
