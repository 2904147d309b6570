"""Videos, cameras and network streams, frame by frame, as a player shows them: upright, in the colours that are meant.

PyAV (FFmpeg's libraries) reads: it comes with supervision, opens what FFmpeg opens, and gives each frame its time. A thread
of its own decodes ahead, so that the model does not wait for it. Of a live source only the newest frames are kept: a
detector slower than the camera skips frames instead of falling behind.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any

import av
import numpy as np
from av.error import FFmpegError, InvalidDataError
from av.sidedata.sidedata import Type
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from numpy.typing import NDArray

from nextdetr.errors import DataError
from nextdetr.files import is_local
from nextdetr.inference.moving import Video
from nextdetr.inference.tags import VideoTags

__all__ = ["Frame", "read_frames"]

logger = logging.getLogger(__name__)

AHEAD, AHEAD_LIVE = 8, 2  # frames that wait to be looked at
TIMEOUT = 10.0  # seconds without a sign of life, after which a source is given up
AGAIN = 0.005  # seconds until a camera without a picture is asked again
RESTART = 1.0  # seconds: a clock that goes back further than this has started again
# FFmpeg's names of the matrices that ``VideoTags.matrix_for`` returns.
COLORSPACES = {
    1: Colorspace.ITU709, 4: Colorspace.FCC, 5: Colorspace.ITU601, 6: Colorspace.ITU601, 7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
}  # fmt: skip
USUAL_RATE = 25.0  # frames a second where a video does not say
STATES_SECONDS = ("matroska", "webm", "flv")  # containers that state their length first, so that a cut file still does
CUT = 0.9  # of that length, below which the file is taken to be cut

#: FFmpeg's name of pictures that a camera sends over HTTP one by one, as MJPEG, and of a file with what it sent: FFmpeg
#: takes them for 25 a second.
PUSHED = "mpjpeg"

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of a video.

    Attributes:
        index: number of the frame, from 0, as it was decoded (a live source skips some).
        seconds: its time from the start; it always rises, also where the stream's own clock starts again.
        pixels: [H, W, 3] uint8 RGB, turned and mirrored as the video's display matrix says.
        tags: how the frame is shown.
        live: whether it came from a source that does not wait.
    """

    index: int
    seconds: float
    pixels: Pixels
    tags: VideoTags
    live: bool = False


def read_frames(video: Video) -> Generator[Frame]:
    """Decode a video, ahead of its reader.

    Damaged parts are skipped, and a source that breaks off, or was cut, ends; the log has a warning of either.

    Raises:
        DataError: the video cannot be opened, or holds no picture.
    """
    stop = threading.Event()
    container = _open(video)
    pushed = _is_pushed(container, video)
    if pushed:
        video = replace(video, live=True)
    waiting: Queue[Frame | Exception | None] = Queue(AHEAD_LIVE if video.live else AHEAD)
    arguments = (container, video, waiting, stop, pushed)
    thread = threading.Thread(target=_decode, args=arguments, name="nextdetr-decode", daemon=True)
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
        source: Any = video.source
        if not source.isprintable() and Path(source).is_file():
            source = Path(source).open("rb")  # noqa: SIM115 - FFmpeg takes names in UTF-8 only; closed with its container
        container: Any = av.open(source, format=video.format, options=options, timeout=(TIMEOUT, TIMEOUT))
    except (FFmpegError, OSError, ValueError) as error:
        hint = ""
        if video.live:
            hint = "; check that a camera is connected" if video.format else "; check address and network"
        raise DataError(f"{video.name} cannot be opened as a video: {_reason(error)}{hint}.") from error
    if not container.streams.video:
        container.close()
        raise DataError(f"{video.name} has no picture, only {', '.join(s.type for s in container.streams) or 'nothing'}.")
    live = video.live or _is_pushed(container, video)
    container.streams.video[0].thread_type = "SLICE" if live else "AUTO"  # decoding frames at once delays each by as many
    return container


def _is_pushed(container: Any, video: Video) -> bool:
    """Whether a camera sends the pictures now; a file of them waits for its reader, and has no times but FFmpeg's."""
    return container.format.name == PUSHED and not is_local(video.source)


def _decode(
    container: Any, video: Video, waiting: Queue[Frame | Exception | None], stop: threading.Event, pushed: bool
) -> None:
    """Run in a thread: put frames, and at the end None, or what went wrong in a way that nobody expected."""
    stream = container.streams.video[0]
    convert = VideoReformatter()
    end: Exception | None = None
    index, damaged, broken = 0, 0, None
    rate = float(stream.guessed_rate or stream.average_rate or 0)
    count = 0 if video.live else _expected_frames(container, stream)
    known = stream.start_time is not None and not video.live
    clock = _Clock(1 / (rate or USUAL_RATE), float(stream.start_time * stream.time_base) if known else None)
    try:
        packets = _packets(container, stream, stop, patient=video.live)
        while not stop.is_set():
            try:
                packet = next(packets, None)
            except (FFmpegError, OSError) as error:  # also for damage: nothing comes after it
                broken = _reason(error)
                break
            if packet is None:
                break
            try:
                frames = packet.decode()
            except InvalidDataError:
                damaged += 1
                continue
            except (FFmpegError, OSError) as error:
                broken = _reason(error)
                break
            for picture in frames:
                when = time.monotonic() if pushed else picture.time
                pixels, tags = _shown(picture, convert, stream.sample_aspect_ratio, rate, count)
                frame = Frame(index, clock.at(when), pixels, tags, video.live)
                _put(waiting, frame, stop, newest=video.live)
                index += 1
    except Exception as error:  # noqa: BLE001 - handed on to the thread that asked
        end = error
    if damaged:
        logger.warning("%s: %d damaged parts were skipped", video.name, damaged)
    if broken is not None:
        logger.warning("%s: broke off after %d frames (%s)", video.name, index, broken)
    elif video.live and end is None and not stop.is_set():
        logger.warning("%s: the source ended after %d frames", video.name, index)
    elif not (video.live or stop.is_set()):
        _tell_if_cut(container, video, index, 0.0 if clock.last is None else clock.last + clock.step)
    _put(waiting, end, stop)


def _packets(container: Any, stream: Any, stop: threading.Event, *, patient: bool) -> Iterator[Any]:
    """Yield the packets of a stream; a ``patient`` reader asks again where there is none yet, as macOS's cameras say."""
    packets, silent = container.demux(stream), None
    while True:
        try:
            packet = next(packets, None)
        except BlockingIOError:
            now = time.monotonic()
            silent = now if silent is None else silent
            if not patient or now - silent > TIMEOUT:
                raise
            if stop.wait(AGAIN):
                return
            packets = container.demux(stream)
            continue
        silent = None
        if packet is None:
            return
        yield packet


def _tell_if_cut(container: Any, video: Video, frames: int, seconds: float) -> None:
    """Log a warning where fewer frames, or seconds, came to the end than the file says that it has."""
    stream = container.streams.video[0]
    stated = _stated_seconds(container, stream)
    if 0 < frames < stream.frames:
        logger.warning("%s: %d of its %d frames could be decoded", video.name, frames, stream.frames)
    elif frames and stated is not None and seconds < CUT * stated:
        logger.warning("%s: it ends after %.1f of its %.1f seconds; is the file cut?", video.name, seconds, stated)


def _expected_frames(container: Any, stream: Any) -> int:
    """Return how many frames a video has, about, by what its file says; 0 where that says nothing."""
    if stream.frames:
        return int(stream.frames)
    seconds = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / av.time_base
    return max(0, round(seconds * float(stream.average_rate or 0)))


def _stated_seconds(container: Any, stream: Any) -> float | None:
    """Return how long the picture lasts by what the file says at its start; None where it says nothing there."""
    if not set(container.format.name.split(",")) & set(STATES_SECONDS):
        return None
    if re.fullmatch(r"\d+:\d+:\d+(\.\d+)?", text := stream.metadata.get("DURATION", "")):  # Matroska's, of this stream
        hours, minutes, seconds = (float(part) for part in text.split(":"))
        return 3600 * hours + 60 * minutes + seconds
    alone = len(container.streams) == 1  # the file's length may be that of its sound
    return float(container.duration / av.time_base) if alone and container.duration else None


class _Clock:
    """Times from the start of the video that always rise.

    Args:
        step: usual time from frame to frame, seconds.
        began: what the stream's clock shows at the start; None takes the first frame's time.
    """

    def __init__(self, step: float, began: float | None) -> None:
        self.step, self.began = step, began
        self.last: float | None = None

    def at(self, time: float | None) -> float:
        """Return the time of the next frame; ``time`` is that of the stream's clock, None where it has none."""
        if time is None:
            now = 0.0 if self.last is None else self.last + self.step
        else:
            if self.began is None or (self.last is None and time < self.began):
                self.began = time
            now = time - self.began
            if self.last is not None and now <= self.last:
                restarts = self.last - now > RESTART
                now = self.last + (self.step if restarts else self.step / 1000)
                if restarts:
                    self.began = time - now
        self.last = now
        return now


def _shown(
    picture: Any, convert: VideoReformatter, aspect: Fraction | None, rate: float, count: int
) -> tuple[Pixels, VideoTags]:
    """Return a decoded picture as it is to be shown, RGB; ``count`` is the number of frames of its video."""
    full = picture.color_range == ColorRange.JPEG or picture.format.name.startswith("yuvj")
    tags = VideoTags(
        rate,
        aspect or Fraction(1),
        int(picture.colorspace),
        full,
        int(picture.color_primaries),
        int(picture.color_trc),
        count,
    )
    settings: dict[str, Any] = {}
    matrix = tags.matrix_for(picture.width, picture.height)
    if not picture.format.is_rgb and matrix != tags.matrix:
        settings["src_colorspace"] = COLORSPACES[matrix]
    pixels: Any = convert.reformat(picture, format="rgb24", **settings).to_ndarray()
    shown = picture.side_data.get(Type.DISPLAYMATRIX)
    if shown is None:
        return pixels, tags
    upright, turned = _upright(pixels, np.frombuffer(bytes(shown), np.int32).reshape(3, 3))
    return upright, replace(tags, aspect=1 / tags.aspect) if turned else tags


def _upright(pixels: Pixels, matrix: NDArray[np.int32]) -> tuple[Pixels, bool]:
    """Turn and mirror a picture by the multiple of 90 degrees that is nearest to its display matrix.

    Returns:
        The picture, and whether its sides have changed places. The matrix maps a point (x, y), a row, to where it is shown:
        x' = a·x + c·y, y' = b·x + d·y with the rows (a, b) and (c, d). https://ffmpeg.org/doxygen/trunk/group__lavu__video__display.html
    """
    (a, b), (c, d) = matrix[:2, :2].tolist()
    turned = abs(b) + abs(c) > abs(a) + abs(d)
    across, down = (c, b) if turned else (a, d)
    shown = pixels.swapaxes(0, 1) if turned else pixels
    return np.ascontiguousarray(shown[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]), turned


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
