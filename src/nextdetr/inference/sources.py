"""What to predict on: files, folders, patterns, addresses, images in memory, videos, cameras, and any mixture of them."""

from __future__ import annotations

import glob
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar, cast

from nextdetr.errors import DataError
from nextdetr.files import is_local
from nextdetr.inference.moving import Video, as_video, is_video_file, named_path
from nextdetr.inference.tags import VideoTags
from nextdetr.inference.web import WebImage, fetch, without_password
from nextdetr.pictures import Encoded, count_frames, is_picture, kind_of, not_here
from nextdetr.preprocess import AS_EVER, ImageSource, Reading, as_image, encoded, is_image_source, is_pixels

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
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
    "skipped_as",
]

Sources: TypeAlias = "ImageSource | Iterable[ImageSource]"

#: What is skipped besides the kinds of ``not_here``, and what to do about it.
_SKIPPED = {
    "frames": "beyond the first frame or page of a file",
    "unreadable": "that could not be read",
    "subfolders": "in subfolders (--recursive takes them in)",
    "videos": "video (not supported here)",
}

_LONGEST = 300  # letters of a name in a message

T = TypeVar("T")
R = TypeVar("R")


def skipped_as(kind: str, count: int) -> str:
    """Return what images of a kind that is skipped are called, with their number."""
    return f"{count} {_SKIPPED.get(kind) or not_here(kind)}"


@dataclass(frozen=True, slots=True)
class SourceItem:
    """One image to look at, or one video.

    Attributes:
        path: its path or address as text; for an image in memory, the file name that it knows, or "image-1", "image-2", …
            by its position.
        image: the path, or what ``as_image`` takes besides; an address, fetched when it is its turn; or a video, whose
            frames take its place then.
        frame: number of the frame, where the image is one of a video.
        seconds: its time from the video's start.
        live: whether it came from a source that does not wait.
        problem: why a video or an animation could not be opened, or read on; it has no frame then.
        tags: how a frame of a video is shown.
        file: the file in memory that a frame is of; None of one on the disk.
    """

    path: str
    image: ImageSource | Video | WebImage
    frame: int | None = None
    seconds: float | None = None
    live: bool = False
    problem: str | None = None
    tags: VideoTags | None = None
    file: Encoded | None = None

    @property
    def in_memory(self) -> bool:
        """Whether the caller handed over the image rather than its name."""
        if self.frame is not None:
            return self.file is not None
        return not isinstance(self.image, str | Path | Video | WebImage)

    def open(self, reading: Reading = AS_EVER) -> Opened:
        """Return the image, 8-bit RGB, or the reason why it cannot be read.

        Raises:
            DataError: an array is not an image, which is a mistake in the caller's code and no damaged file.
        """
        source = self.image
        if isinstance(source, Video) or self.problem is not None:
            return Opened(None, self.problem or f"{self.path} is a video.")
        try:
            if isinstance(source, WebImage):
                source = fetch(source)
            image = as_image(source, reading)
        except DataError as error:
            if is_pixels(source):
                raise DataError(f"{self.path}: {error}") from error
            told = str(error)
            return Opened(None, told if self.path in told else f"{self.path}: {told}")
        if self.frame is not None:
            return Opened(image, None, 0, self.file)
        if isinstance(source, str | Path):
            return Opened(image, None, count_frames(Path(source)) - 1)
        return Opened(image, None, count_frames(source) - 1 if isinstance(source, Encoded) else 0, source)


class Opened(NamedTuple):
    """What came of opening an item.

    Attributes:
        image: 8-bit RGB; None where it cannot be read.
        problem: why it cannot; None where all is well.
        more_frames: frames or pages of the file after the first, which nobody looks at.
        given: the pixels, or the encoded file in memory, that it was read from.
    """

    image: Image.Image | None
    problem: str | None
    more_frames: int = 0
    given: ImageSource | None = None


def find_images(
    sources: Sources, *, videos: bool = False, skipped: Counter[str] | None = None, recursive: bool = False
) -> Iterable[SourceItem]:
    """List the images that are meant.

    A folder means the image files in it, and with ``videos`` the video files, in the order of their names, and with
    ``recursive`` those in its subfolders, linked ones too; else those of its direct subfolders are counted as skipped
    (``subfolders``). Hidden files and other kinds of file are skipped in folders and patterns. A name that exists is never
    taken for a pattern, whatever characters it has. A video is named by its path or address (``rtsp://…``, or ``https://…``
    with a video's ending), a camera by its number; either is one item here, and its frames are decoded when it is its turn.
    Any other ``http://…`` or ``https://…`` is an image, fetched when it is its turn.

    Args:
        sources: a path, folder, glob pattern, address, or image in memory (see ``as_image``), or several of these. Lists
            and tuples are looked through at once; any other iterable is drawn from as it is consumed.
        videos: whether videos, cameras and streams are taken too.
        skipped: counts, by ``heic``, ``raw`` and ``videos``, what is in folders and patterns that is not taken.
        recursive: whether the subfolders of folders are entered.

    Raises:
        DataError: a file or folder does not exist, a folder holds no image, or a pattern matches none.
    """
    if is_image_source(sources):
        sources = [cast("ImageSource", sources)]
    if not isinstance(sources, Iterable):
        raise DataError(f"images come as paths, PIL images, arrays or a list of them, not as {type(sources).__name__}.")
    found = _find(
        cast("Iterable[ImageSource]", sources), _Taken(videos, Counter() if skipped is None else skipped, recursive)
    )
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
    path = named_path(named[0])
    return path if is_local(path) and path.is_dir() else None


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


def none_readable(problems: Sequence[str]) -> DataError:
    """Return the error of a run that could read none of its images, given the reason for each."""
    more = f"none of the {len(problems)} images could be read; the first: " if len(problems) > 1 else ""
    return DataError(more + problems[0])


def read_ahead(
    items: Iterable[T],
    read: Callable[[T], R],
    *,
    ahead: int,
    threads: int,
    urgent: Callable[[T], bool] = lambda _: False,
) -> Iterator[R]:
    """Map ``read`` over ``items`` in order, with at most ``ahead`` results waiting; without threads, one at a time.

    The result of an ``urgent`` item is yielded before the next item is asked for.
    """
    if threads < 1:
        yield from map(read, items)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="nextdetr-read")
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(read, item))
            most = 0 if urgent(item) else ahead
            while len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def reading_threads(device: str) -> int:
    """Threads that decode images: none on the CPU, whose cores the model fills by itself."""
    return 0 if device == "cpu" else min(8, os.cpu_count() or 1)


class _Taken(NamedTuple):
    """What is taken of folders and patterns.

    Attributes:
        videos: whether videos are.
        skipped: counts what is not.
        recursive: whether subfolders are entered.
    """

    videos: bool
    skipped: Counter[str]
    recursive: bool

    @property
    def kinds(self) -> str:
        """What is looked for, for messages."""
        return "image or video" if self.videos else "image"

    def has(self, path: Path) -> bool:
        """Whether a file is taken."""
        return is_picture(path) or (self.videos and is_video_file(path))

    def of(self, paths: Iterable[Path]) -> list[Path]:
        """Return the files that are taken, in the order of their names, and count those that would be elsewhere."""
        files = []
        for path in paths:
            if self.has(path):
                files.append(path)
            elif (kind := kind_of(path)) is not None and not path.name.startswith(".") and path.is_file():
                self.skipped[kind] += 1
            elif is_video_file(path):
                self.skipped["videos"] += 1
        return sorted(files)

    def others(self) -> str:
        """Say what there is in place of images, for a message."""
        return "".join(f"; skipped: {skipped_as(kind, count)}" for kind, count in sorted(self.skipped.items()))


def _find(sources: Iterable[ImageSource], taken: _Taken) -> Iterator[SourceItem]:
    position = 0
    for source in sources:
        for item in _expand(source, position + 1, taken):
            position += 1
            yield item


def _expand(source: ImageSource, position: int, taken: _Taken) -> Iterator[SourceItem]:
    if not isinstance(source, str | Path):
        if not is_image_source(source):
            raise DataError(f"source {position} is neither a path, a PIL image nor an array but {type(source).__name__}.")
        yield _in_memory(source, f"image-{position}")
        return
    if not str(source):
        raise DataError("the name of an image or folder is empty (a dot means the folder that you are in).")
    video = as_video(source)
    if video is not None:
        if not taken.videos:
            raise DataError(f"{video.name}: here images are taken, and no videos, cameras or streams.")
        yield SourceItem(video.name, video)
        return
    path = named_path(source)
    if is_local(path):
        files = _images_in(path, taken) if path.is_dir() else [path]
    elif glob.has_magic(str(source)) and _scheme(str(source)) not in ("http", "https"):
        files = _matching(str(path), taken)
    elif "://" in str(source):
        yield _on_the_web(str(source))
        return
    else:
        name = str(source) if len(str(source)) <= _LONGEST else f"{str(source)[:_LONGEST]}…"  # perhaps a picture as base64
        raise DataError(f"{name}: there is no such file or folder.")
    for file in files:
        yield SourceItem(str(file), as_video(file) or file)


def _on_the_web(address: str) -> SourceItem:
    name = without_password(address)
    if _scheme(address) not in ("http", "https"):
        raise DataError(f"{name}: images are fetched from http:// and https:// addresses only.")
    return SourceItem(name, WebImage(address))


def _scheme(address: str) -> str:
    return address.partition("://")[0].lower() if "://" in address else ""


def _in_memory(source: ImageSource, name: str) -> SourceItem:
    """Return an image that the caller has in memory; what can be read once only is read now."""
    known = getattr(source, "name", "") if isinstance(source, Encoded) else getattr(source, "filename", "")
    if isinstance(source, bytes | bytearray | memoryview) or hasattr(source, "read"):
        known = getattr(source, "name", "")
        known = known if isinstance(known, str) else ""
        source = encoded(cast("bytes | IO[bytes]", source), known or name)
    return SourceItem(str(known or name), source)


def _images_in(folder: Path, taken: _Taken) -> list[Path]:
    if taken.recursive:
        files = [path for below in _folders_below(folder) for path in taken.of(below.iterdir())]
        if not files:
            raise DataError(f"the folder {folder} holds no {taken.kinds}, and neither do its subfolders{taken.others()}.")
        return files
    files = taken.of(folder.iterdir())
    deeper = sum(taken.has(path) for path in folder.glob("[!.]*/*"))
    if not files:
        hint = f'; its subfolders do: --recursive takes them in, or "{folder}/**/*"' if deeper else ""
        raise DataError(f"the folder {folder} holds no {taken.kinds}{hint}{taken.others()}.")
    taken.skipped.update({"subfolders": deeper} if deeper else {})
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


def _matching(pattern: str, taken: _Taken) -> list[Path]:
    files = taken.of(map(Path, glob.glob(pattern, recursive=True)))  # noqa: PTH207
    if not files:
        raise DataError(f"no {taken.kinds} matches {pattern}{taken.others()}.")
    return files
