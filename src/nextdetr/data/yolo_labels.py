"""YOLO label files: finding the file of an image, and parsing its rows.

A row is a class index and one of these, all as fractions of the image's sides:

- centre x, centre y, width, height;
- the same and a confidence, 0 to 1, as in predictions, or a track number: see ``yolo_tracks.py``;
- the same and key points, if the data set's ``kpt_shape`` gives their number of values; they are ignored;
- three or more points x y, a polygon, without ``kpt_shape``; its bounding box is used;
- a polygon and a confidence, or a box or a polygon, a confidence and a track number: see ``yolo_tracks.py``.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from nextdetr.data.listing import FileFinder
from nextdetr.data.raw import plural, read_lines
from nextdetr.data.records import Problem
from nextdetr.errors import DataError

__all__ = [
    "LabelFiles", "Row", "check_indices", "doubts", "keypoint_values", "label_path", "read_labels", "refuse_poses",
]  # fmt: skip

_CORNERS_OF_BOX = 9  # values: a class and the four corners of a rotated box
_ENOUGH = 10  # number of rows at which equal numbers of points are suspicious

_Box = tuple[float, float, float, float]


class Row(NamedTuple):
    """A row of a label file.

    Attributes:
        where: its line.
        label: class index.
        box: xyxy in fractions.
        confidence: 0 to 1; None without one.
        values: number of values.
        track: the last value, if it may be a track number; see ``yolo_tracks.py``.
        tracked: box and confidence in that case.
        pose: whether it may be a box and key points (x, y, visible) instead of a polygon: True if a visibility is 2, which
            is no coordinate; None if it cannot.
    """

    where: str
    label: int
    box: _Box
    confidence: float | None
    values: int
    track: int | None = None
    tracked: tuple[_Box, float] | None = None
    pose: bool | None = None

    def without_track(self) -> Row:
        """Return the row interpreted with its last value as a track number."""
        if self.tracked is None:
            return self
        box, confidence = self.tracked
        return self._replace(box=box, confidence=confidence, values=self.values - 2, track=None, tracked=None)

    @property
    def scored_polygon(self) -> bool:
        """Whether it was read as a polygon and a confidence."""
        return self.values > 6 and self.confidence is not None


def label_path(image: Path) -> Path:
    """Return the expected path of an image's labels: the last folder called ``images`` becomes ``labels``."""
    folders = list(image.parent.parts)
    for position in range(len(folders) - 1, -1, -1):
        if folders[position] in ("images", "Images"):
            folders[position] = "labels"
            break
    return Path(*folders) / f"{image.stem}.txt"


class LabelFiles:
    """Finds the label file of each image of a split.

    Args:
        images: all images of the split.
        labels: folder of the label files; None uses the rule of ``label_path``, and looks beside the image if that finds
            nothing, as a set may lie in a folder that happens to be called ``images``.
        folders: the folders that the images were listed from; ``labels`` is expected to have the same subfolders.
    """

    def __init__(self, images: Sequence[Path], labels: Path | None, folders: Sequence[Path]) -> None:
        self.labels, self.folders = labels, folders
        self._finder = FileFinder()
        self._images = images
        self._beside: dict[str, str] = {}  # folder of images -> folder of their labels, by the rule

    @cached_property
    def _stems(self) -> Counter[str]:
        """Number of folders with an image of a name; a.jpg and a.png in one folder share their labels."""
        return Counter(stem for _, stem in dict.fromkeys((image.parent, image.stem) for image in self._images))

    def candidates(self, image: Path) -> list[Path]:
        """Return the candidate paths, most likely first."""
        if self.labels is None:
            return list(dict.fromkeys((label_path(image), image.parent / f"{image.stem}.txt")))
        return list(dict.fromkeys((*self._mirrored(image), self.labels / f"{image.stem}.txt")))

    def _mirrored(self, image: Path) -> list[Path]:
        """Return the candidate paths with the image's own subfolders."""
        return [
            self.labels / image.relative_to(folder).parent / f"{image.stem}.txt"
            for folder in self.folders
            if self.labels is not None and image.is_relative_to(folder)
        ]

    def find(self, image: Path) -> Path | None:
        """Return the label file, or None if the image has none.

        Raises:
            DataError: the file may belong to several images with the same name in different folders.
        """
        if self.labels is None:  # the usual case, a hundred thousand times: avoid building paths
            folder = os.path.dirname(image)  # noqa: PTH120
            if folder not in self._beside:
                self._beside[folder] = str(label_path(image).parent)
            likely = f"{self._beside[folder]}{os.sep}{image.stem}.txt"
            if os.path.isfile(likely):  # noqa: PTH113
                return Path(likely)
        for path in self.candidates(image):
            found = self._finder.find(path)
            if not found.is_file():
                continue
            if self.labels is not None and self._stems[image.stem] > 1 and path not in self._mirrored(image):
                raise DataError(
                    f"{found}: {self._stems[image.stem]} images of the split are called {image.stem}, and nothing says "
                    f"whose labels these are; give {self.labels} the same subfolders as the images have."
                )
            return found
        return None


def keypoint_values(content: Mapping[str, Any], source: Path) -> int:
    """Return the number of key point values per object, from ``kpt_shape`` (points, values of each); 0 without it.

    Raises:
        DataError: it is not a pair of numbers, or a point has neither two nor three values.
    """
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    try:
        points, values = (int(number) for number in shape)
    except (TypeError, ValueError):
        points = values = 0
    if points < 1 or values not in (2, 3):
        raise DataError(
            f"{source}: kpt_shape is {shape}; it must be two numbers, how many key points an object has and how many "
            "values each of them has: 2 (x, y) or 3 (x, y, visible)."
        )
    return points * values


def read_labels(path: Path, keypoints: int, problems: list[Problem]) -> Iterator[Row]:
    """Yield every row that can be parsed, and report the others.

    Args:
        path: the label file.
        keypoints: result of ``keypoint_values``.
        problems: list to which problems are appended.
    """
    file = str(path)
    try:
        lines = read_lines(path)
    except DataError as error:
        problems.append(Problem(file, "", f"{error}".removeprefix(file).strip(" :."), "unreadable label file"))
        return
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields:
            continue
        where = f"line {number}"
        try:
            values = [float(value) for value in fields]
        except ValueError:
            message = f"{_excerpt(line)} is not made of numbers; dropped"
            problems.append(Problem(file, where, message, "malformed label line"))
            continue
        fault = _fault(values, keypoints)
        if fault:
            problems.append(Problem(file, where, f"{fault}; dropped", "malformed label line"))
        elif not values[0].is_integer():
            problems.append(Problem(file, where, f"the class index {fields[0]} is not whole; dropped", "unknown class"))
        else:
            scored = len(values) == 6 or (len(values) % 2 == 0 and not keypoints)
            box = _corners(values[1:5] if keypoints or len(values) == 6 else values[1:-1] if scored else values[1:])
            pose = _pose(values) if len(values) > 6 and not keypoints else None
            row = Row(where, int(values[0]), box, values[-1] if scored else None, len(values), pose=pose)
            yield row if keypoints and len(values) != 6 else _perhaps_tracked(row, values)


def _perhaps_tracked(row: Row, values: Sequence[float]) -> Row:
    """Return a row with its interpretation as a track row, if its last value may be a track number."""
    if len(values) < 6 or row.scored_polygon:
        return row
    track = _track(values[-1])
    if len(values) == 6:
        return row._replace(track=track)
    if not track or not 0 <= values[-2] <= 1:
        return row
    return row._replace(track=track, tracked=(_corners(values[1:-2]), values[-2]))


def _track(value: float) -> int | None:
    """Return a value as the number of a track, which is whole; None if it is not."""
    return int(value) if 0 <= value < 2**53 and value.is_integer() else None


def _pose(values: Sequence[float]) -> bool | None:
    """Return ``Row.pose`` of the values of a row."""
    visible = values[7::3]
    if len(values) < 8 or (len(values) - 5) % 3 or not all(value in (0, 1, 2) for value in visible):
        return None
    return 2 in visible


def _fault(values: Sequence[float], keypoints: int) -> str:
    """Return what is wrong with the form of a row; "" if nothing."""
    count = len(values)
    if count == 5 or (keypoints and count == 5 + keypoints):
        return ""
    five = "5 belong (class, centre x, centre y, width, height)"
    if count == 6:
        if 0 <= values[5] <= 1 or _track(values[5]) is not None:
            return ""
        return f"the sixth value, {values[5]:g}, is not a confidence, which is 0 to 1"
    if keypoints:
        return f"{plural(count, 'value')} where {five}, or {5 + keypoints} with the key points that kpt_shape announces"
    if count % 2 == 0 and _pose(values):
        points = (count - 5) // 3
        return f"{count} values, as of a box and {plural(points, 'key point')}: data.yaml needs kpt_shape: [{points}, 3]"
    if count >= 8 and count % 2 == 0 and _pose(values) is None and 0 <= values[-1] <= 1:
        return ""
    if count < 7 or count % 2 == 0:
        return f"{plural(count, 'value')} where {five}, or a class and three or more points"
    return ""


def doubts(shapes: Mapping[int, int], first: Mapping[int, tuple[str, str]], keypoints: int) -> list[Problem]:
    """Return warnings about rows that may be meant differently.

    Args:
        shapes: number of rows by their number of values.
        first: (file, line) of the first row with each number of values.
        keypoints: result of ``keypoint_values``.
    """
    problems = []
    long = [count for count in shapes if count > 6]
    if not keypoints and len(long) == 1 and long[0] > _CORNERS_OF_BOX and shapes[long[0]] >= _ENOUGH:
        count = long[0]
        message = (
            f"all {shapes[count]:,} rows of more than a box have {count} values, and are taken for polygons; if they are "
            "boxes with key points, write kpt_shape into the YAML"
        )
        problems.append(Problem(*first[count], message, "polygons or key points"))
    return problems


def refuse_poses(rows: Mapping[bool | None, int], values: int, source: str, example: str) -> None:
    """Refuse boxes with key points that would be read as polygons, or as boxes with a confidence and a track number.

    Args:
        rows: number of rows of more than a box by their ``Row.pose``.
        values: number of values of the example.
        source: file that names the classes.
        example: file and line of a row whose ``pose`` is True.

    Raises:
        DataError: there is one, and no row is anything else.
    """
    if not rows.get(True) or rows.get(None):
        return
    points = (values - 5) // 3
    raise DataError(
        f"{source}: the row of {example} and all like it are boxes with {points} key points and their visibility (0 to 2): "
        f"write kpt_shape: [{points}, 3] into the data.yaml; a set without one needs one, with train and names, too."
    )


def check_indices(counts: Mapping[int, int], names: Mapping[int, str], source: str, example: str) -> None:
    """Refuse labels whose class indices are all off by the same number: every name would be wrong.

    Args:
        counts: number of occurrences of each index in the label files.
        names: class index -> name.
        source: file with the names.
        example: file and line of an index without a name.

    Raises:
        DataError: an index has no name, but another starting number would give every index a name.
    """
    if all(index in names for index in counts):
        return
    low, high = min(counts), max(counts)
    least, most = low - max(names), high - min(names)
    shifts = range(least, most + 1) if most - least < 10_000 else ()  # an index may be huge
    if not any(shift and all(i - shift in names for i in counts) for shift in shifts):
        return
    shown = ", ".join(f"{index} ({counts[index]:,} times)" for index in sorted(counts)[:10])
    named = ", ".join(f"{index} {name}" for index, name in list(names.items())[:10])
    raise DataError(
        f"{source}: the class indices of the label files do not fit the names: {shown} occur (such as {example}), "
        f"and named are {named}. Indices count from 0: rewrite the labels, or give each index its name."
    )


def _excerpt(line: str) -> str:
    text = line.strip().encode("utf-8", "replace").decode()
    return repr(text if len(text) <= 60 else f"{text[:60]}…")


def _corners(values: Sequence[float]) -> _Box:
    if len(values) in (4, 5):
        x, y, width, height = values[:4]
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    xs, ys = values[0::2], values[1::2]
    if any(math.isnan(value) for value in values):  # min and max may ignore NaN
        return (math.nan,) * 4
    return min(xs), min(ys), max(xs), max(ys)
