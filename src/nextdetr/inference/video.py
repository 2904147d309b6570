"""Videos, cameras and network streams, frame by frame; and annotated videos.

PyAV (FFmpeg's libraries) reads and writes: it comes with supervision, opens what FFmpeg opens, and gives each frame its
time. A thread of its own decodes ahead, so that the model does not wait for it. Of a live source only the newest frames are
kept: a detector slower than the camera skips frames instead of falling behind.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from queue import Empty, Full, Queue
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
from av.error import FFmpegError, InvalidDataError
from numpy.typing import NDArray

from nextdetr.errors import DataError
from nextdetr.inference.sources import Video

__all__ = ["Frame", "VideoWriter", "read_frames"]

logger = logging.getLogger(__name__)

AHEAD, AHEAD_LIVE = 8, 2  # frames that wait to be looked at
TIMEOUT = 10.0  # seconds without a sign of life, after which a source is given up
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
# Without latency the encoder holds no frame back that a kill would lose.
CODECS = {
    "libx264": {"preset": "veryfast", "tune": "zerolatency", "crf": "23", "g": "50"},
    "mpeg4": {"qscale": "3"},
}
CLOCK = 90_000  # ticks a second of written videos, MPEG's own

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of a video.

    Attributes:
        index: number of the frame, from 0, as it was decoded (a live source skips some).
        seconds: its time from the start.
        pixels: [H, W, 3] uint8 RGB.
    """

    index: int
    seconds: float
    pixels: Pixels


def read_frames(video: Video) -> Generator[Frame]:
    """Decode a video, ahead of whoever asks.

    Damaged parts are skipped, and a source that breaks off ends; the log has a warning of either.

    Raises:
        DataError: the video cannot be opened, or holds no picture.
    """
    stop = threading.Event()
    waiting: Queue[Frame | Exception | None] = Queue(AHEAD_LIVE if video.live else AHEAD)
    container = _open(video)
    thread = threading.Thread(target=_decode, args=(container, video, waiting, stop), name="nextdetr-decode", daemon=True)
    thread.start()
    try:
        seen = 0
        while True:
            item = waiting.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                break
            seen += 1
            yield item
        if not seen:
            raise DataError(f"{video.name}: not one frame could be decoded; is the file damaged?")
    finally:
        stop.set()
        thread.join(timeout=TIMEOUT)
        if not thread.is_alive():
            container.close()


def _open(video: Video) -> Any:
    options = {"rtsp_transport": "tcp"} if video.source.lower().startswith("rtsp") else {}
    try:
        container: Any = av.open(video.source, format=video.format, options=options, timeout=(TIMEOUT, TIMEOUT))
    except (FFmpegError, OSError, ValueError) as error:
        raise DataError(f"{video.name} cannot be opened as a video: {_reason(error)}.") from error
    if not container.streams.video:
        container.close()
        raise DataError(f"{video.name} has no picture, only {', '.join(s.type for s in container.streams) or 'nothing'}.")
    container.streams.video[0].thread_type = "AUTO"
    return container


def _decode(container: Any, video: Video, waiting: Queue[Frame | Exception | None], stop: threading.Event) -> None:
    """Run in a thread: put frames, and at the end None, or what went wrong in a way that nobody expected."""
    stream = container.streams.video[0]
    end: Exception | None = None
    index, damaged, broken = 0, 0, None
    began = float(stream.start_time * stream.time_base) if stream.start_time and not video.live else 0.0
    try:
        packets = container.demux(stream)
        while not stop.is_set():
            try:
                packet = next(packets, None)
                frames = [] if packet is None else packet.decode()
            except InvalidDataError:
                damaged += 1
                continue
            except (FFmpegError, OSError) as error:
                broken = _reason(error)
                break
            if packet is None:
                break
            for picture in frames:
                seconds = index / float(stream.average_rate or 25) if picture.time is None else picture.time - began
                _put(waiting, Frame(index, seconds, picture.to_ndarray(format="rgb24")), stop, newest=video.live)
                index += 1
    except Exception as error:  # noqa: BLE001 - handed on to the thread that asked
        end = error
    if damaged:
        logger.warning("%s: %d damaged parts were skipped", video.name, damaged)
    if broken is not None:
        logger.warning("%s: broke off after %d frames (%s)", video.name, index, broken)
    elif not video.live and 0 < index < stream.frames:
        logger.warning("%s: %d of its %d frames could be decoded", video.name, index, stream.frames)
    _put(waiting, end, stop)


def _put(
    waiting: Queue[Frame | Exception | None], item: Frame | Exception | None, stop: threading.Event, newest: bool = False
) -> None:
    """Put an item, in place of the oldest one if need be; give up when nobody asks any more."""
    while not stop.is_set():
        try:
            waiting.put(item, timeout=0.0 if newest else 0.1)
        except Full:
            if newest:
                with suppress(Empty):
                    waiting.get_nowait()
            continue
        return


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).rstrip(".").lower() or type(error).__name__


class VideoWriter:
    """Writes an H.264 video of frames with times of their own.

    The file is fragmented: what has been written can be played even if the program is killed. Until ``close`` it is called
    ``<stem>.part.mp4``.

    Args:
        path: of the video, ``.mp4``.
        width: of the frames, pixels; an odd one loses a column.
        height: likewise.
        rate: frames a second, about; players show it.
    """

    def __init__(self, path: Path, width: int, height: int, rate: float = 25.0) -> None:
        self.path, self.part = path, path.with_name(f"{path.stem}.part{path.suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._size = (max(2, width - width % 2), max(2, height - height % 2))
        self._container: Any = av.open(str(self.part), "w", format="mp4", options=FRAGMENTED)
        codec = next(name for name in CODECS if name in av.codecs_available)
        rounded = Fraction(rate).limit_denominator(1001)
        stream: Any = self._container.add_stream(codec, rate=rounded, options=CODECS[codec])
        stream.width, stream.height = self._size
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, CLOCK)
        self._stream = stream
        self._last = -1

    def write(self, pixels: Pixels, seconds: float) -> None:
        """Append a frame [H, W, 3] uint8 RGB; a time that does not rise is moved up by the least step."""
        width, height = self._size
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), format="rgb24")
        self._last = max(self._last + 1, round(seconds * CLOCK))
        frame.pts, frame.time_base = self._last, Fraction(1, CLOCK)
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def close(self) -> None:
        """Finish the file and give it its name."""
        for packet in self._stream.encode():
            self._container.mux(packet)
        self._container.close()
        self.part.replace(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
