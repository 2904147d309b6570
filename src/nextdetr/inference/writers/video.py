"""Annotated videos: H.264 in fragments, checked before they get their name."""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import ColorRange, VideoReformatter
from numpy.typing import NDArray
from PIL import Image, ImageOps

from nextdetr.errors import WriteError
from nextdetr.files import path_text
from nextdetr.inference.predictor import Prediction
from nextdetr.inference.tags import VideoTags
from nextdetr.inference.video import COLORSPACES, USUAL_RATE
from nextdetr.inference.writers.part import PartFile
from nextdetr.inference.writers.pictures import Draw, plain

__all__ = ["AnnotatedVideo", "VideoWriter"]

FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
# Without latency the encoder holds no frame back that a kill would lose.
CODECS = {
    "libx264": {"preset": "veryfast", "tune": "zerolatency", "crf": "23", "g": "50"},
    "mpeg4": {"qscale": "3"},
}
CLOCK = 90_000  # ticks a second of written videos, MPEG's own


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
        self.frames = 0
        self._given = (width, height)
        self._size = (max(2, width - width % 2), max(2, height - height % 2))
        # FFmpeg's own output says nothing of a disk that has run full until it is too late.
        self._file = PartFile(path)
        self._container: Any = av.open(self._file, "w", format="mp4", options=FRAGMENTED)
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
        self._finished = False
        self._convert = VideoReformatter()  # one for all frames; ``frame.reformat`` sets up a new one each time

    def write(self, pixels: NDArray[np.uint8], seconds: float) -> None:
        """Append a frame [H, W, 3] uint8 RGB; a time that does not rise is moved up by the least step.

        Raises:
            WriteError: the disk is full, or the file cannot be written for another reason.
        """
        if pixels.shape[1::-1] != self._given or min(self._given) < 2:
            pixels = np.asarray(ImageOps.pad(Image.fromarray(pixels), self._size))
        width, height = self._size
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), format="rgb24")
        frame = self._convert.reformat(frame, format="yuv420p", **self._colours)
        self._last = max(self._last + 1, round(seconds * CLOCK))
        frame.pts, frame.time_base = self._last, Fraction(1, CLOCK)
        self._mux(frame)
        self.frames += 1

    def commit(self) -> None:
        """Finish the file, open it again, count its frames, and give it its name.

        Raises:
            WriteError: the file is not whole.
        """
        try:
            self._finish()
            self._file.finish()
            _check(self._file.part, self.frames)
            self._file.commit()
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Leave the part, if it has a frame."""
        with suppress(Exception):
            self._finish()
        self._file.abort(keep=self.frames > 0)

    def _finish(self) -> None:
        if not self._finished:
            self._finished = True
            self._mux(None)
            self._container.close()

    def _mux(self, frame: Any) -> None:
        try:
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
        except FFmpegError as error:
            self._file.check()  # what went wrong with the file says more
            size = " x ".join(map(str, self._size))
            raise WriteError(
                f"{path_text(self._file.path)}: a video of {size} pixels cannot be encoded ({error.strerror or error})."
            ) from error
        self._file.check()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.commit()
        else:
            self.abort()


class AnnotatedVideo:
    """Draws the frames of one video and writes them.

    Args:
        path: of the video, ``.mp4``.
        draw: makes the picture of a frame; by default its detections are drawn.
    """

    def __init__(self, path: Path, draw: Draw | None = None) -> None:
        self._path, self._draw = path, draw or plain
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


def _set_colours(context: Any, tags: VideoTags, width: int, height: int) -> dict[str, Any]:
    """Tag the stream, and return what ``reformat`` needs to make its frames so."""
    matrix = tags.matrix_for(width, height)
    context.sample_aspect_ratio = tags.aspect
    context.colorspace = matrix
    context.color_range = ColorRange.JPEG if tags.full_range else ColorRange.MPEG
    context.color_primaries, context.color_trc = tags.primaries, tags.transfer
    return {"dst_colorspace": COLORSPACES[matrix], "dst_color_range": context.color_range}


def _check(path: Path, frames: int) -> None:
    """Raise WriteError unless the video has this many frames, and its first one can be decoded."""
    try:
        with path.open("rb") as file, av.open(file, "r") as container:
            packets = 0
            for packet in container.demux(video=0):
                if packets == 0:
                    packet.decode()
                packets += packet.size > 0 and not packet.is_corrupt
    except FFmpegError as error:
        raise WriteError(f"{path_text(path)} cannot be read again ({error.strerror or error}).") from error
    if packets != frames:
        raise WriteError(f"{path_text(path)} has {packets} of {frames} frames: the disk has not kept what was written.")
