"""Where an image came from, so that it can be read again after the prediction: nobody keeps the pixels of many files."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from PIL import Image

from nextdetr.errors import DataError
from nextdetr.inference.frames import frames_of
from nextdetr.inference.sources import SourceItem, as_video
from nextdetr.preprocess import AS_EVER, ImageSource, Reading, as_image

__all__ = ["ImageReader", "Origin"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an image came from.

    Attributes:
        path: of the file, an address, or what an image in memory is called.
        in_memory: whether the caller handed over the image itself.
        frame: number of the frame in a video or an animation.
        given: pixels or an encoded file in memory; None of a file on the disk, and where nobody keeps it.
        reading: how files are read.
    """

    path: str
    in_memory: bool = False
    frame: int | None = None
    given: ImageSource | None = None
    reading: Reading = AS_EVER

    def image(self) -> Image.Image:
        """Return the image, 8-bit RGB, read again where it is a file's or a video's; see :class:`ImageReader` for many.

        Raises:
            DataError: it cannot be read, or was not kept.
        """
        with ImageReader() as reader:
            return reader.image(self)

    def is_of_same_file(self, other: Origin) -> bool:
        """Whether both are frames of one video or animation, read in the same way."""
        same = (self.path, self.in_memory, self.reading) == (other.path, other.in_memory, other.reading)
        return same and self.given is other.given


class ImageReader:
    """Reads many images again, one after the other; the frames of a video in ascending order take one pass through it.

    A context manager. It holds the last frame, and the few that are decoded ahead of it.
    """

    def __init__(self) -> None:
        self._open: Origin | None = None  # any frame of the video or animation that is being read
        self._frames: Generator[SourceItem] | None = None
        self._last: SourceItem | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the video that is being read."""
        if self._frames is not None:
            self._frames.close()
        self._open = self._frames = self._last = None

    def image(self, origin: Origin) -> Image.Image:
        """Return an image, 8-bit RGB.

        Raises:
            DataError: it cannot be read, or was not kept.
        """
        given = origin.given
        if given is None and (origin.in_memory or ("://" in origin.path and origin.frame is None)):
            raise DataError(
                f"{origin.path} is not kept, as it came from an iterator: take it from detector.stream, or pass the image."
            )
        if origin.frame is None:
            return as_image(origin.path if given is None else given, origin.reading)
        return self._frame(origin, origin.frame)

    def _frame(self, origin: Origin, number: int) -> Image.Image:
        """Read on to a frame of a video or animation, from its start if the frame is not ahead."""
        if self._open is None or not origin.is_of_same_file(self._open) or number < self._place:
            self.close()
            self._open, self._frames = origin, _frames_of(origin)
        assert self._frames is not None
        while self._place < number:
            item = next(self._frames, None)
            if item is None or item.frame is None or item.problem is not None:
                break
            self._last = item
        if self._last is None or self._place != number:
            raise DataError(f"{origin.path}: frame {number} cannot be read again.")
        return as_image(self._last.image, origin.reading)  # type: ignore[arg-type]

    @property
    def _place(self) -> int:
        """Number of the last frame; -1 before the first."""
        return -1 if self._last is None or self._last.frame is None else self._last.frame


def _frames_of(origin: Origin) -> Generator[SourceItem]:
    """Return the frames of the video or animation that a frame is of.

    Raises:
        DataError: it was a stream, or is gone.
    """
    video = as_video(origin.path) if origin.given is None else None
    if video is not None and (video.live or not Path(video.source).exists()):
        raise DataError(f"{origin.path}: the frames of a stream are not kept: take them from detector.stream.")
    source = origin.given if origin.given is not None else video or Path(origin.path)
    return frames_of(SourceItem(origin.path, source), origin.reading)
