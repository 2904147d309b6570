"""What is a moving picture by its name: files, cameras and the addresses of streams."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from nextdetr.files import is_local
from nextdetr.inference.web import without_password

__all__ = ["Video", "as_video", "is_video_file", "named_path"]

VIDEO_SUFFIXES = frozenset(
    f".{ending}"
    for ending in (  # noqa: SIM905 - a list of them would be one a line
        "3g2 3gp 264 265 asf avi divx dv f4v flv h264 h265 hevc ivf m2ts m2v m4v mjpeg mjpg mkv mov mp4 mpe mpeg mpg "
        "mts mxf ogv qt ts vob webm wmv "
    ).split()
)
LIVE_SCHEMES = frozenset(("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "tcp", "srt"))
WEB_SUFFIXES = VIDEO_SUFFIXES | {".m3u8", ".mpd"}
_TS_PACKET = 188  # bytes; each begins with the letter G


@dataclass(frozen=True, slots=True)
class Video:
    """A moving picture to look at.

    Attributes:
        name: path, address without its password, or "camera 0".
        source: what FFmpeg opens.
        live: frames come whether they are looked at or not.
        format: FFmpeg's name of a camera's driver; None lets it find out.
    """

    name: str
    source: str
    live: bool = False
    format: str | None = None


def is_video_file(path: Path) -> bool:
    """Whether a file of a folder is taken for a video: by its name, and if it is there.

    A ``.ts`` may also be a program in TypeScript, and is looked into.
    """
    suffix = path.suffix.lower()
    if path.name.startswith(".") or suffix not in VIDEO_SUFFIXES or not path.is_file():
        return False
    if suffix != ".ts":
        return True
    try:
        with path.open("rb") as file:
            start = file.read(_TS_PACKET + 1)
    except OSError:
        return False
    return start[:1] == b"G" and start[_TS_PACKET:] in (b"", b"G")


def named_path(source: str | Path) -> Path:
    """Return the path of a name: ``~`` is replaced, but not in names such as ``~photo.jpg``, as there is no such user."""
    path = Path(source)
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def as_video(source: str | Path) -> Video | None:
    """Return the video that is meant; None if ``source`` is no video, camera number or stream's address."""
    text = str(source)
    path = named_path(source)
    if is_local(path):
        return Video(text, str(path)) if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES else None
    if text.isdecimal():
        return _camera(int(text))
    if "://" in text:
        try:
            parts = urlsplit(text)
        except ValueError:  # no address; fetching it reports that
            return None
        if parts.scheme.lower() in LIVE_SCHEMES:
            return Video(without_password(text), text, live=True)
        if parts.scheme.lower() in ("http", "https") and Path(parts.path).suffix.lower() in WEB_SUFFIXES:
            return Video(without_password(text), text)
    return None


def _camera(number: int) -> Video:
    name = f"camera {number}"
    if sys.platform == "darwin":
        return Video(name, str(number), live=True, format="avfoundation")
    if sys.platform == "win32":
        return Video(name, f"video={number}", live=True, format="dshow")
    return Video(name, f"/dev/video{number}", live=True, format="v4l2")
