"""Annotated videos: H.264 in fragments, checked before they get their name."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import ColorRange
from numpy.typing import NDArray
from PIL import Image, ImageOps

from nextdetr.inference.drawing import draw_detections
from nextdetr.inference.predictor import Prediction
from nextdetr.inference.tags import VideoTags
from nextdetr.inference.video import COLORSPACES, USUAL_RATE
from nextdetr.inference.writers.protocol import part_of

__all__ = ["AnnotatedVideo", "Draw", "VideoWriter"]

logger = logging.getLogger(__name__)

FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
# Without latency the encoder holds no frame back that a kill would lose.
CODECS = {
    "libx264": {"preset": "veryfast", "tune": "zerolatency", "crf": "23", "g": "50"},
    "mpeg4": {"qscale": "3"},
}
CLOCK = 90_000  # ticks a second of written videos, MPEG's own

Draw = Callable[[Image.Image, Prediction], Image.Image]


class VideoWriter:
    """Writes an H.264 video of frames with times of their own.

    The file is fragmented: what has been written can be played even if the program is killed. Until it is committed it is
    called ``<stem>.part.mp4``. As a context manager it commits, or aborts if the block is left by an exception.

    Args:
        path: of the video, ``.mp4``.
        width: of the frames, pixels; an odd one loses a column.
        height: likewise. A frame of another size is brought to this one, with black bars where its shape differs.
        rate: frames a second, about; players show it.
        tags: how the frames are shown: the shape of a pixel, and what colours their RGB stands for.
    """

    def __init__(
        self, path: Path, width: int, height: int, rate: float = USUAL_RATE, tags: VideoTags | None = None
    ) -> None:
        tags = tags or VideoTags()
        self.path, self.part = path, part_of(path)
        self.frames = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._given = (width, height)
        self._size = (max(2, width - width % 2), max(2, height - height % 2))
        self._sink = _Sink(self.part)
        self._container: Any = av.open(self._sink, "w", format="mp4", options=FRAGMENTED)
        codec = next(name for name in CODECS if name in av.codecs_available)
        stream: Any = self._container.add_stream(
            codec, rate=Fraction(rate or USUAL_RATE).limit_denominator(1001), options=CODECS[codec]
        )
        stream.width, stream.height = self._size
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, CLOCK)
        self._colours = _set_colours(stream.codec_context, tags, *self._size)
        self._stream = stream
        self._last = -1

    def write(self, pixels: NDArray[np.uint8], seconds: float) -> None:
        """Append a frame [H, W, 3] uint8 RGB; a time that does not rise is moved up by the least step.

        Raises:
            OSError: the disk is full, or the file cannot be written for another reason.
        """
        if pixels.shape[1::-1] != self._given or min(self._given) < 2:
            pixels = np.asarray(ImageOps.pad(Image.fromarray(pixels), self._size))
        width, height = self._size
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), format="rgb24")
        frame = frame.reformat(format="yuv420p", **self._colours)
        self._last = max(self._last + 1, round(seconds * CLOCK))
        frame.pts, frame.time_base = self._last, Fraction(1, CLOCK)
        self._mux(frame)
        self.frames += 1

    def commit(self) -> None:
        """Finish the file, open it again, count its frames, and give it its name.

        Raises:
            OSError: the file is not whole.
        """
        try:
            self._finish()
            _check(self.part, self.frames)
        except BaseException:
            self.abort()
            raise
        self.part.replace(self.path)

    def abort(self) -> None:
        """Leave the part, if it has a frame."""
        with suppress(Exception):
            self._finish()
        self._sink.close()
        if self.frames == 0:
            self.part.unlink(missing_ok=True)

    def _finish(self) -> None:
        if self._sink.closed:
            return
        self._mux(None)
        self._container.close()
        self._sink.finish()

    def _mux(self, frame: Any) -> None:
        try:
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
        except FFmpegError:
            self._sink.check()  # what went wrong with the file says more
            raise
        self._sink.check()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.commit()
        else:
            self.abort()


class _Sink:
    """The file that FFmpeg writes to: its own output says nothing of a disk that has run full until it is too late."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._problem: OSError | None = None
        self.name = str(path)

    @property
    def closed(self) -> bool:
        return self._file.closed

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            error.filename = error.filename or self.name
            self._problem = self._problem or error
            raise
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def check(self) -> None:
        if self._problem is not None:
            raise self._problem

    def finish(self) -> None:
        """Write through to the disk."""
        self.check()
        os.fsync(self._file.fileno())
        self._file.close()

    def close(self) -> None:
        with suppress(OSError):
            self._file.close()


class AnnotatedVideo:
    """Draws the frames of one video and writes them.

    Args:
        path: of the video, ``.mp4``.
        draw: makes the picture of a frame; by default its detections are drawn.
    """

    def __init__(self, path: Path, draw: Draw | None = None) -> None:
        self._path, self._draw = path, draw or _plain
        self._writer: VideoWriter | None = None

    def add(self, prediction: Prediction) -> None:
        """Draw a frame and write it; the first one gives the video its size."""
        if prediction.image is None:
            return
        if self._writer is None:
            tags = prediction.tags or VideoTags()
            self._writer = VideoWriter(self._path, prediction.width, prediction.height, tags.rate, tags)
        self._writer.write(np.asarray(self._draw(prediction.image, prediction)), prediction.seconds or 0.0)

    def commit(self) -> None:
        """Finish the video."""
        if self._writer is not None:
            self._writer.commit()

    def abort(self) -> None:
        """Leave the part that there is, which plays."""
        if self._writer is not None:
            self._writer.abort()


def _plain(image: Image.Image, prediction: Prediction) -> Image.Image:
    return draw_detections(image, prediction.detections)


def _set_colours(context: Any, tags: VideoTags, width: int, height: int) -> dict[str, Any]:
    """Tag the stream, and return what ``reformat`` needs to make its frames so."""
    matrix = tags.matrix_for(width, height)
    context.sample_aspect_ratio = tags.aspect
    context.colorspace = matrix
    context.color_range = ColorRange.JPEG if tags.full_range else ColorRange.MPEG
    context.color_primaries, context.color_trc = tags.primaries, tags.transfer
    return {"dst_colorspace": COLORSPACES[matrix], "dst_color_range": context.color_range}


def _check(path: Path, frames: int) -> None:
    """Raise OSError unless the video has so many frames, and its first one can be decoded."""
    try:
        with path.open("rb") as file, av.open(file, "r") as container:
            packets = 0
            for packet in container.demux(video=0):
                if packets == 0:
                    packet.decode()
                packets += packet.size > 0
    except FFmpegError as error:
        raise OSError(f"{path} cannot be read again: {error.strerror or error}") from error
    if packets != frames:
        raise OSError(f"{path} has {packets} of {frames} frames: the disk has not kept what was written")
