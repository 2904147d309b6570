"""Where an image came from, so that it can be read again after the prediction: nobody keeps the pixels of many files."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from nextdetr.errors import DataError
from nextdetr.inference.frames import frames_of
from nextdetr.inference.sources import SourceItem, as_video
from nextdetr.preprocess import AS_EVER, ImageSource, Reading, as_image

__all__ = ["Origin"]


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
        """Return the image, 8-bit RGB, read again where it is a file's or a video's.

        Raises:
            DataError: it cannot be read, or was not kept.
        """
        if self.given is None and (self.in_memory or ("://" in self.path and self.frame is None)):
            raise DataError(
                f"{self.path} is not kept, as it came from an iterator: take it from detector.stream, or pass the image."
            )
        if self.frame is None:
            return as_image(self.path if self.given is None else self.given, self.reading)
        return self._frame()

    def _frame(self) -> Image.Image:
        """Decode the video or animation again, up to the frame."""
        video = as_video(self.path) if self.given is None else None
        if video is not None and (video.live or not Path(video.source).exists()):
            raise DataError(f"{self.path}: the frames of a stream are not kept: take them from detector.stream.")
        item = SourceItem(self.path, self.given if self.given is not None else video or Path(self.path))
        with closing(frames_of(item, self.reading)) as frames:
            for frame in frames:
                if frame.frame == self.frame and frame.problem is None:
                    return as_image(frame.image, self.reading)  # type: ignore[arg-type]
        raise DataError(f"{self.path}: frame {self.frame} cannot be read again.")
