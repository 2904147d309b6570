"""CVAT for images and for video 1.1: one XML, and the images in ``images/`` (https://docs.cvat.ai, export formats).

A project's export has all of its tasks in one file; exports of several tasks may lie side by side, each in a folder. An
image's ``subset`` is its split. Shapes other than boxes give their enclosing box: rotated boxes, ellipses, polygons,
polylines, cuboids, skeletons, masks. Tags and single points have no extent and are only counted. A file with a DOCTYPE is
refused, since none is needed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from html import unescape
from pathlib import Path
from xml.parsers import expat

from nextdetr.data.cvat_video import Shape, Track, Video
from nextdetr.data.objects import (
    Annotated,
    Box,
    Marked,
    around,
    build_split,
    by_split,
    enclosing,
    locate,
    number_classes,
    passed_over,
    rotated,
    split_called,
)
from nextdetr.data.raw import RawSplit
from nextdetr.data.recognise import Format, Glance, SplitReader, start_of
from nextdetr.data.records import Problem
from nextdetr.errors import DataError

__all__ = ["CVAT"]

_LONE = "train"  # split of images without one
_SUBSET = re.compile(rb"<image\b([^>]*)>")
_SUBSET_VALUE = re.compile(rb"""\ssubset=["']([^"']*)["']""")
_META_SUBSET = re.compile(rb"<subset>([^<]*)</subset>")
_META = ("subset", "source", "start_frame", "stop_frame", "frame_filter", "width", "height")
_NO_EXTENT = ("tag", "points")  # shapes, and types of labels that have no other shapes
_OF_A_LABEL = ("name", "type", "parent")
_FRAME = re.compile(r"\d{1,9}")
_SHAPES = ("box", "polygon", "polyline", "ellipse", "cuboid", "mask", "skeleton")


def _files(glance: Glance) -> list[Path]:
    """Return the XML files of a set: the file itself, those in the folder, or those in its subfolders."""
    own = [path for path in glance.files(".xml") if _starts_right(path)]
    return own or [path for path in glance.first_below(".xml") if _starts_right(path)]


def _starts_right(path: Path) -> bool:
    return re.search(rb"<annotations\b", start_of(path, 1024)) is not None


def _recognise(glance: Glance) -> str:
    files = _files(glance)
    return ", ".join(glance.shown(path) for path in files[:2]) + (", …" if len(files) > 2 else "")


def _open(glance: Glance) -> dict[str, SplitReader]:
    files = _own_splits(_files(glance), glance.path)
    names = dict.fromkeys(_split_of(subset, own) for file, own in files.items() for subset in _subsets(file) or [""])
    return {split: partial(_read, glance.path, files, split) for split in names or {_LONE: None}}


def _own_splits(files: Sequence[Path], root: Path) -> dict[Path, str]:
    """Return the split of each file's images without subset, by its name or folder, if these name splits."""
    splits = by_split(files, root)
    named = len(splits) > 1 and _LONE in splits
    return {file: split if named else _LONE for split, some in splits.items() for file in some}


def _split_of(subset: str, own: str = _LONE) -> str:
    return split_called(subset) or (subset if subset.lower() not in ("", "default") else own)


def _subsets(file: Path) -> list[str]:
    """Return the subsets of a file with a quick search, without parsing it."""
    found: dict[str, None] = {}
    content = file.read_bytes()
    for tag in _SUBSET.finditer(content):
        value = _SUBSET_VALUE.search(tag[1])
        found[unescape(value[1].decode("utf-8", "replace")) if value else ""] = None
    meta = None if found else _META_SUBSET.search(content, 0, content.find(b"<track"))  # of a video
    return list(found) or ([unescape(meta[1].decode("utf-8", "replace")).strip()] if meta else [])


def _read(path: Path, splits: Mapping[Path, str], split: str, classes: Sequence[str] | None) -> RawSplit:
    found: list[Annotated] = []
    problems: list[Problem] = []
    files = [_CvatFile(file) for file in splits]
    own = number_classes(name for file in files for name in (*file.labels, *file.used))
    for file in files:
        images = [item for subset, item in file.images if _split_of(subset, splits[file.path]) == split]
        for item in images:
            item.objects = [mark._replace(label=own[file.used[mark.label]]) for mark in item.objects]
        folder = file.path.parent
        problems += locate(images, [*_folders(folder, split), folder / "images", folder], split)
        problems += file.problems
        found += images
    source = str(path)
    return build_split(found, {number: name for name, number in own.items()}, classes, source=source, problems=problems)


def _folders(root: Path, split: str) -> list[Path]:
    """Return the folders of ``images/`` named after a subset, where a project's export has its images."""
    images = root / "images"
    below = sorted(folder for folder in images.iterdir() if folder.is_dir()) if images.is_dir() else []
    return [folder for folder in below if _split_of(folder.name) == split]


class _CvatFile:
    """Parses one file as a stream.

    Attributes:
        labels: classes declared in the file, without those of which no object has an extent.
        used: classes used by objects; ``Marked.label`` is a position in it.
        images: (subset, image) in file order.
        problems: problems found.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.labels: list[str] = []
        self.used: list[str] = []
        self.images: list[tuple[str, Annotated]] = []
        self.problems: list[Problem] = []
        self._numbers: dict[str, int] = {}
        self._counts: Counter[str] = Counter()
        self._stack: list[str] = []
        self._text = ""
        self._label: dict[str, str] = {}  # what is said of the label that is being read
        self._skeleton: tuple[str, str, list[Box]] | None = None  # label, where, boxes of its points
        self._video = Video()
        self._frame, self._track = -1, ""  # frame of the skeleton of a track, and class of the track
        self._parser = parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end
        parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = self._characters, self._doctype
        try:
            with path.open("rb") as file:
                parser.ParseFile(file)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}.") from error
        except expat.ExpatError as error:
            raise DataError(f"{path}, line {error.lineno}: not valid XML ({expat.ErrorString(error.code)}).") from error
        except (ValueError, LookupError) as error:  # an unknown encoding
            raise DataError(f"{path}, line 1: not valid XML ({error}).") from error
        if self._video.tracks:
            subset = self._video.meta.get("subset", "")
            self.images += [(subset, item) for item in self._video.images(path, self.problems)]
        self.problems += passed_over(str(path), self._counts, "there is no extent to make a box of")

    def _where(self) -> str:
        return f"line {self._parser.CurrentLineNumber}"

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        if not self._stack and tag != "annotations":
            raise DataError(f"{self.path}, {self._where()}: not a CVAT file: its first element is {tag}.")
        self._stack.append(tag)
        self._text = ""
        if tag == "image" and len(self._stack) == 2:
            size = _size(attributes)
            name = attributes.get("name") or f"image {len(self.images) + 1}, which has no name"
            self.images.append((attributes.get("subset", ""), Annotated(name, str(self.path), self._where(), size)))
        elif tag == "track" and len(self._stack) == 2:
            self._track = attributes.get("label", "").strip()
            self._video.tracks.append(Track(-1, attributes.get("task_id", "")))
        elif len(self._stack) > 2 and self._stack[1] in ("image", "track"):
            self._shape(tag, attributes)

    def _end(self, tag: str) -> None:
        self._stack.pop()
        if self._stack[1:2] == ["meta"]:
            if tag in _OF_A_LABEL and self._stack[-1] == "label":
                self._label[tag] = self._text.strip()
            elif tag == "label":
                self._declare(self._label)
                self._label = {}
            elif tag in _META:
                self._video.meta[tag] = self._text.strip()
        if tag == "skeleton" and self._skeleton is not None and len(self._stack) == 2:
            label, where, boxes = self._skeleton
            self._skeleton = None
            if boxes:
                self._add(label, around(boxes), where)

    def _declare(self, label: Mapping[str, str]) -> None:
        """Add a class, unless it is a point of a skeleton, which has a parent, or its objects cannot have an extent."""
        if label.get("name") and not label.get("parent") and label.get("type") not in _NO_EXTENT:
            self.labels.append(label["name"])

    def _characters(self, text: str) -> None:
        self._text += text

    def _doctype(self, *_arguments: object) -> None:
        raise DataError(
            f"{self.path}, {self._where()}: it declares a DOCTYPE, which annotations do not need and which is not safe to "
            "read."
        )

    def _shape(self, tag: str, attributes: Mapping[str, str]) -> None:
        where = self._where()
        if len(self._stack) == 3 and self._stack[1] == "track":
            frame = attributes.get("frame", "")
            if not _FRAME.fullmatch(frame):
                message = f"its frame is {frame[:20]!r}, no number; dropped"
                self.problems.append(Problem(str(self.path), where, message, "malformed box"))
                return
            self._frame = int(frame)
            if attributes.get("outside") == "1":
                self._video.tracks[-1].shapes.append(Shape(self._frame, None, where))
                return
        if self._skeleton is not None:
            if tag == "points" and attributes.get("outside") != "1":
                self._skeleton[2].extend(self._box(tag, attributes, where))
        elif len(self._stack) != 3:
            return  # attributes of a shape
        elif tag == "skeleton":
            self._skeleton = (attributes.get("label", "").strip(), where, [])
        elif tag in _NO_EXTENT:
            self._counts["tag" if tag == "tag" else "point shape"] += 1
        elif tag in _SHAPES:
            if attributes.get("outside") != "1":
                for box in self._box(tag, attributes, where):
                    self._add(attributes.get("label", "").strip(), box, where)
        else:
            self._counts[f"shape {tag}"] += 1

    def _number(self, label: str) -> int:
        if label not in self._numbers:
            self._numbers[label] = len(self.used)
            self.used.append(label)
        return self._numbers[label]

    def _add(self, label: str, box: Box, where: str) -> None:
        if self._stack[1] == "track":
            track = self._video.tracks[-1]
            track.label = self._number(self._track)  # not before: a track of points has no box, and is no class
            track.shapes.append(Shape(self._frame, box, where))
        else:
            self.images[-1][1].objects.append(Marked(self._number(label), box, where))

    def _box(self, tag: str, attributes: Mapping[str, str], where: str) -> list[Box]:
        """Return the box around a shape; None, with a problem, if its numbers cannot be read."""
        try:
            return [_extent(tag, attributes)]
        except (KeyError, ValueError) as error:
            cause = f"it has no {error.args[0]}" if isinstance(error, KeyError) else f"{error}"
            self.problems.append(
                Problem(str(self.path), where, f"the {tag} is not readable ({cause}); dropped", "malformed box")
            )
            return []


def _size(attributes: Mapping[str, str]) -> tuple[float, float] | None:
    try:
        width, height = float(attributes["width"]), float(attributes["height"])
    except (KeyError, ValueError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def _extent(tag: str, attributes: Mapping[str, str]) -> Box:
    """Return the upright box around a shape."""
    angle = float(attributes.get("rotation") or 0)
    if tag == "box":
        x1, y1, x2, y2 = (float(attributes[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
        return rotated((x1, y1, x2, y2), angle) if angle else (x1, y1, x2, y2)
    if tag == "ellipse":
        x, y, rx, ry = (float(attributes[key]) for key in ("cx", "cy", "rx", "ry"))
        return rotated((x - rx, y - ry, x + rx, y + ry), angle, ellipse=True)
    if tag == "mask":
        left, top, width, height = (float(attributes[key]) for key in ("left", "top", "width", "height"))
        return left, top, left + width, top + height
    if tag == "cuboid":
        corners = [f"{vertical}{side}{number}" for vertical in ("t", "b") for side in ("l", "r") for number in (1, 2)]
        xs, ys = ([float(attributes[f"{axis}{corner}"]) for corner in corners] for axis in "xy")
        return enclosing(xs, ys)
    points = [tuple(float(value) for value in point.split(",")) for point in attributes["points"].split(";")]
    if any(len(point) != 2 for point in points):
        raise ValueError(f"its points are {attributes['points'][:60]!r}")
    return enclosing([point[0] for point in points], [point[1] for point in points])


CVAT = Format("cvat", "an XML of CVAT, or its folder", _recognise, _open, unfinished=True)
