"""What to predict on: files, folders, glob patterns, PIL images, arrays, videos, cameras, and any mixture of them."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from nextdetr.errors import DataError
from nextdetr.inference.tags import VideoTags
from nextdetr.pictures import NOT_HERE, count_frames, is_picture, kind_of
from nextdetr.preprocess import AS_EVER, ImageSource, Reading, as_image

__all__ = [
    "SKIPPED",
    "Opened",
    "SourceItem",
    "Sources",
    "Video",
    "as_video",
    "find_images",
    "none_readable",
    "only_folder",
    "read_ahead",
    "reading_threads",
]

Sources: TypeAlias = ImageSource | Iterable[ImageSource]

#: What is passed over, by kind, and what to do about it.
SKIPPED = {
    **NOT_HERE,
    "frames": "frames or pages after the first of their file",
    "unreadable": "that could not be read",
    "subfolders": "in subfolders (--recursive takes them in)",
}

T = TypeVar("T")
R = TypeVar("R")


VIDEO_SUFFIXES = frozenset(
    (
        *(
            ".3g2",
            ".3gp",
            ".264",
            ".265",
            ".asf",
            ".avi",
            ".divx",
            ".dv",
            ".f4v",
            ".flv",
            ".h264",
            ".h265",
            ".hevc",
            ".ivf",
        ),
        *(
            ".m2ts",
            ".m2v",
            ".m4v",
            ".mjpeg",
            ".mjpg",
            ".mkv",
            ".mov",
            ".mp4",
            ".mpe",
            ".mpeg",
            ".mpg",
            ".mts",
            ".mxf",
            ".ogv",
        ),
        *(".qt", ".ts", ".vob", ".webm", ".wmv", ".y4m"),
    )
)
LIVE_SCHEMES = frozenset(("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "tcp", "srt"))
WEB_SUFFIXES = VIDEO_SUFFIXES | {".m3u8", ".mpd"}


@dataclass(frozen=True, slots=True)
class Video:
    """A moving picture to look at.

    Attributes:
        name: path, address, or "camera 0".
        source: what FFmpeg opens.
        live: frames come whether they are looked at or not.
        format: FFmpeg's name of a camera's driver; None lets it find out.
    """

    name: str
    source: str
    live: bool = False
    format: str | None = None


@dataclass(frozen=True, slots=True)
class SourceItem:
    """One image to look at, or one video.

    Attributes:
        path: its path as text; for an image in memory, the file name that PIL knows, or "image-1", "image-2", … by its
            position.
        image: the path, PIL image or array; or a video, whose frames take its place when their turn comes.
        frame: number of the frame, where the image is one of a video.
        seconds: its time from the video's start.
        live: whether it came from a source that does not wait.
        problem: why a video could not be opened; it has no frame then.
        tags: how a frame of a video is shown.
    """

    path: str
    image: ImageSource | Video
    frame: int | None = None
    seconds: float | None = None
    live: bool = False
    problem: str | None = None
    tags: VideoTags | None = None

    @property
    def in_memory(self) -> bool:
        """Whether the caller handed over pixels rather than the name of a file."""
        return not isinstance(self.image, str | Path | Video)

    def open(self, reading: Reading = AS_EVER) -> Opened:
        """Return the image, 8-bit RGB, or the reason why it cannot be read.

        Raises:
            DataError: an array is not an image, which is a mistake in the caller's code and no damaged file.
        """
        if isinstance(self.image, Video):
            return Opened(None, self.problem or f"{self.path} is a video.")
        try:
            image = as_image(self.image, reading)
        except DataError as error:
            if isinstance(self.image, np.ndarray):
                raise DataError(f"{self.path}: {error}") from error
            return Opened(None, str(error))
        return Opened(image, None, count_frames(Path(self.image)) - 1 if isinstance(self.image, str | Path) else 0)


class Opened(NamedTuple):
    """What came of opening an item.

    Attributes:
        image: 8-bit RGB; None where it cannot be read.
        problem: why it cannot; None where all is well.
        more_frames: frames or pages of the file after the first, which nobody looks at.
    """

    image: Image.Image | None
    problem: str | None
    more_frames: int = 0


def find_images(
    sources: Sources, *, videos: bool = False, skipped: Counter[str] | None = None, recursive: bool = False
) -> Iterable[SourceItem]:
    """List the images that are meant.

    A folder means the image files in it, in the order of their names, and with ``recursive`` those in its subfolders,
    linked ones too; else those of its direct subfolders are counted as skipped (``subfolders``). Hidden files and other
    kinds of file are passed over in folders and patterns. A name that exists is never taken for a pattern, whatever
    characters it has. A video is named by its path or address (``rtsp://…``, or ``https://…`` with a video's ending), a
    camera by its number; either is one item here, and its frames are decoded when it is its turn.

    Args:
        sources: a path, folder, glob pattern, PIL image or array, or several of these. Lists and tuples are looked through
            at once; any other iterable is drawn from as it is consumed.
        videos: whether videos, cameras and streams are taken too.
        skipped: counts, by ``heic`` and ``raw``, the pictures in folders and patterns that cannot be read here.
        recursive: whether the subfolders of folders are entered.

    Raises:
        DataError: a file or folder does not exist, a folder holds no image, or a pattern matches none.
    """
    if isinstance(sources, str | Path | Image.Image | np.ndarray):
        sources = [sources]
    if not isinstance(sources, Iterable):
        raise DataError(f"images come as paths, PIL images, arrays or a list of them, not as {type(sources).__name__}.")
    found = _find(sources, videos, Counter() if skipped is None else skipped, recursive)
    if not isinstance(sources, list | tuple):
        return found
    items = list(found)
    if not items:
        raise DataError("there is no image to look at: the list of sources is empty.")
    return items


def only_folder(sources: Sources) -> Path | None:
    """Return the folder that is the only source; None where there is another one, or what was named is no folder."""
    named = [sources] if isinstance(sources, str | Path) else sources
    if not isinstance(named, list | tuple) or len(named) != 1 or not isinstance(named[0], str | Path):
        return None
    path = Path(named[0]).expanduser()
    return path if path.is_dir() else None


def videos_only(items: Iterable[SourceItem]) -> Iterable[SourceItem]:
    """Pass videos, cameras and streams on; a list is looked through at once.

    Raises:
        DataError: an item is an image.
    """

    def checked() -> Iterator[SourceItem]:
        for item in items:
            if not isinstance(item.image, Video):
                raise DataError(f"{item.path} is an image, and --static-camera looks at videos: leave it out for images.")
            yield item

    return list(checked()) if isinstance(items, list) else checked()


def as_video(source: str | Path) -> Video | None:
    """Return the video that is meant; None if ``source`` is no video, camera number or stream's address."""
    text = str(source)
    path = Path(source).expanduser()
    if path.exists():
        return Video(text, str(path)) if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES else None
    if text.isdecimal():
        return _camera(int(text))
    if "://" in text:
        parts = urlsplit(text)
        if parts.scheme.lower() in LIVE_SCHEMES:
            return Video(text, text, live=True)
        if parts.scheme.lower() in ("http", "https") and Path(parts.path).suffix.lower() in WEB_SUFFIXES:
            return Video(text, text)
    return None


def _camera(number: int) -> Video:
    name = f"camera {number}"
    if sys.platform == "darwin":
        return Video(name, str(number), live=True, format="avfoundation")
    if sys.platform == "win32":
        return Video(name, f"video={number}", live=True, format="dshow")
    return Video(name, f"/dev/video{number}", live=True, format="v4l2")


def none_readable(problems: Sequence[str]) -> DataError:
    """Return the error of a run that could read none of its images, given the reason for each."""
    more = f"none of the {len(problems)} images could be read; the first: " if len(problems) > 1 else ""
    return DataError(more + problems[0])


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


def reading_threads(device: str) -> int:
    """Threads that decode images: none on the CPU, whose cores the model fills by itself."""
    return 0 if device == "cpu" else min(8, os.cpu_count() or 1)


def _find(sources: Iterable[ImageSource], videos: bool, skipped: Counter[str], recursive: bool) -> Iterator[SourceItem]:
    position = 0
    for source in sources:
        for item in _expand(source, position + 1, videos, skipped, recursive):
            position += 1
            yield item


def _expand(
    source: ImageSource, position: int, videos: bool, skipped: Counter[str], recursive: bool
) -> Iterator[SourceItem]:
    if not isinstance(source, str | Path):
        if not isinstance(source, Image.Image | np.ndarray):
            raise DataError(f"source {position} is neither a path, a PIL image nor an array but {type(source).__name__}.")
        name = str(getattr(source, "filename", "") or f"image-{position}")
        yield SourceItem(name, source)
        return
    if not str(source):
        raise DataError("the name of an image or folder is empty (a dot means the folder that you are in).")
    video = as_video(source)
    if video is not None:
        if not videos:
            raise DataError(f"{source}: here images are taken, and no videos, cameras or streams.")
        yield SourceItem(video.name, video)
        return
    path = Path(source).expanduser()
    if path.is_dir():
        files = _images_in(path, skipped, recursive)
    elif path.exists():
        files = [path]
    elif glob.has_magic(str(source)):
        files = _matching(str(path), skipped)
    elif "://" in str(source):
        raise DataError(f"{source} is an address on the web: download the image and name the file.")
    else:
        raise DataError(f"{source}: there is no such file or folder.")
    for file in files:
        yield SourceItem(str(file), file)


def _images_in(folder: Path, skipped: Counter[str], recursive: bool) -> list[Path]:
    if recursive:
        files = [path for below in _folders_below(folder) for path in _pictures(below.iterdir(), skipped)]
        if not files:
            raise DataError(f"the folder {folder} holds no image, and neither do its subfolders{_others(skipped)}.")
        return files
    files = _pictures(folder.iterdir(), skipped)
    deeper = sum(is_picture(path) for path in folder.glob("[!.]*/*"))
    if not files:
        hint = f'; its subfolders do: --recursive takes them in, or "{folder}/**/*"' if deeper else ""
        raise DataError(f"the folder {folder} holds no image{hint}{_others(skipped)}.")
    skipped.update({"subfolders": deeper} if deeper else {})
    return files


def _folders_below(folder: Path) -> Iterator[Path]:
    """Yield a folder and all below it, in the order of their names, each once whatever links lead there.

    ``runs`` in the working folder, where commands write pictures, is left out of a folder above it, as by ``train``.
    """
    written, seen = os.path.realpath("runs"), set[str]()
    for name, folders, _ in os.walk(folder, followlinks=True):
        real = os.path.realpath(name)
        if real in seen or (real == written and seen):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(inner for inner in folders if not inner.startswith("."))
        yield Path(name)


def _matching(pattern: str, skipped: Counter[str]) -> list[Path]:
    files = _pictures(map(Path, glob.glob(pattern, recursive=True)), skipped)  # noqa: PTH207
    if not files:
        raise DataError(f"no image matches {pattern}{_others(skipped)}.")
    return files


def _pictures(paths: Iterable[Path], skipped: Counter[str]) -> list[Path]:
    """Return those that are taken, in the order of their names, and count those that would be if they could be read."""
    files = []
    for path in paths:
        if is_picture(path):
            files.append(path)
        elif (kind := kind_of(path)) is not None and not path.name.startswith(".") and path.is_file():
            skipped[kind] += 1
    return sorted(files)


def _others(skipped: Counter[str]) -> str:
    """Say what there is in place of images, for a message."""
    return "".join(f"; there are {count} {SKIPPED[kind]}" for kind, count in sorted(skipped.items()))
