"""Tracks of CVAT for video 1.1, and their frames.

A track has a shape for every frame in which its object is visible, also between key frames, and one with ``outside="1"``
where it disappears. Files with key frames only get linearly interpolated boxes in between, as in CVAT. Frames are files
named ``frame_000000.png`` by their number in the XML; all frames of the task belong to the set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from nextdetr.data.listing import list_images
from nextdetr.data.objects import Annotated, Box, Marked
from nextdetr.data.raw import plural
from nextdetr.data.records import Problem
from nextdetr.errors import DataError

__all__ = ["Shape", "Track", "Video"]

_FRAME = re.compile(r"frame_(\d{1,9})", re.IGNORECASE)


class Shape(NamedTuple):
    """A track in one frame; ``box`` is None where it is not visible."""

    frame: int
    box: Box | None
    where: str


@dataclass(slots=True)
class Track:
    """An object through a video: its class, as in ``Marked.label`` (-1 without a box), its task, and its shapes."""

    label: int
    task: str
    shapes: list[Shape] = field(default_factory=list)


@dataclass(slots=True)
class Video:
    """What a file says about a video, and its tracks.

    Attributes:
        meta: texts by name: ``source``, ``start_frame``, ``stop_frame``, ``frame_filter``, ``width``, ``height``.
        tracks: the objects.
    """

    meta: dict[str, str] = field(default_factory=dict)
    tracks: list[Track] = field(default_factory=list)

    def images(self, file: Path, problems: list[Problem]) -> list[Annotated]:
        """Return the frames beside a file with their objects, including missing frames that have objects.

        Raises:
            DataError: there are no frames, their numbers do not match, or the tracks belong to several tasks.
        """
        if len({track.task for track in self.tracks}) > 1:
            raise DataError(
                f"{file}: it holds tracks of several tasks, whose frames have the same numbers; export each task by "
                'itself, or the project as "CVAT for images 1.1".'
            )
        folder = file.parent / "images" if (file.parent / "images").is_dir() else file.parent
        paths = self._frames(folder, file)
        found = {frame: self._image(path.name, file, path) for frame, path in paths.items()}
        filled = 0
        for track in self.tracks:
            for frame, box, where in _seen(track, self._step()):
                filled += not where
                item = found.setdefault(frame, self._image(f"frame_{frame:06d}", file, None))
                item.objects.append(Marked(track.label, box, where or track.shapes[0].where))
        if filled:
            message = f"{plural(filled, 'box')} between key frames, which the file leaves out, are drawn on straight lines"
            problems.append(Problem(str(file), "", message, "box between key frames"))
        return [found[frame] for frame in sorted(found)]

    def _image(self, name: str, file: Path, path: Path | None) -> Annotated:
        width, height = (_whole(self.meta, key, 0) for key in ("width", "height"))
        return Annotated(name, str(file), "", (width, height) if width and height else None, path=path)

    def _step(self) -> int:
        match = re.search(r"step\s*=\s*(\d{1,9})", self.meta.get("frame_filter", ""))
        return max(1, int(match[1])) if match else 1

    def _frames(self, folder: Path, file: Path) -> dict[int, Path]:
        """Return the files of the frames that the task covers."""
        files: dict[int, Path] = {}
        for path in list_images(folder).files:
            match = _FRAME.fullmatch(path.stem)
            if match and files.setdefault(int(match[1]), path) is not path:
                raise DataError(
                    f"{file}: both {files[int(match[1])]} and {path} may be its frame {int(match[1])}; keep one."
                )
        if not files:
            source = self.meta.get("source") or "the video"
            raise DataError(
                f'{file}: this is "CVAT for video", and {folder} has none of its frames (frame_000000.png, …). Export the '
                'task with Save images, or a task of images as "CVAT for images 1.1", or write the frames out: '
                f"ffmpeg -i {source} -start_number 0 frame_%06d.png."
            )
        start, step = _whole(self.meta, "start_frame", 0), self._step()
        stop = _whole(self.meta, "stop_frame", max(files))
        if start not in files and stop + step in files:
            raise DataError(f"{folder}: its frames are numbered from {min(files)}, and those of {file} from {start}.")
        return {frame: files[frame] for frame in sorted(files) if start <= frame <= stop and (frame - start) % step == 0}


def _whole(values: Mapping[str, str], key: str, default: int) -> int:
    text = values.get(key, "")
    return int(text) if re.fullmatch(r"\d{1,9}", text) else default


def _seen(track: Track, step: int) -> Iterator[tuple[int, Box, str]]:
    """Yield (frame, box, where) for each frame in which a track is visible; ``where`` is "" for interpolated boxes."""
    shapes = sorted({shape.frame: shape for shape in track.shapes}.values(), key=lambda shape: shape.frame)
    for shape, following in pairwise([*shapes, None]):
        if shape is None or shape.box is None:
            continue
        yield shape.frame, shape.box, shape.where
        if following is None:
            continue
        end = shape.box if following.box is None else following.box  # keeps its place until it disappears
        for frame in range(shape.frame + step, following.frame, step):
            share = (frame - shape.frame) / (following.frame - shape.frame)
            x1, y1, x2, y2 = (a + share * (b - a) for a, b in zip(shape.box, end, strict=True))
            yield frame, (x1, y1, x2, y2), ""
