"""labelme (https://github.com/wkentaro/labelme): a JSON beside each image, with shapes in pixels.

Shapes other than rectangles give their enclosing box: polygons, lines, circles (centre and a point on the edge), rotated
rectangles and masks; those of one class and ``group_id`` are parts of one object. Single points have no extent and are
counted. ``imageData``, the encoded image, is ignored: the file named by ``imagePath`` counts, or the one beside the JSON
with its name. An image without a JSON has not been annotated and is left out; one without objects has a JSON without
shapes. Folders named train, val and test are splits; without train, files in none of them are.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from nextdetr.data.listing import FileFinder, fold, list_files, list_images
from nextdetr.data.objects import (
    Annotated,
    Box,
    Marked,
    around,
    as_confidence,
    build_split,
    enclosing,
    number_classes,
    passed_over,
    split_called,
    unannotated,
)
from nextdetr.data.raw import RawSplit, plural
from nextdetr.data.recognise import Format, Glance, SplitReader, start_of
from nextdetr.data.records import Problem

__all__ = ["LABELME"]

_KEYS = re.compile(rb'"(shapes|imagePath)"\s*:')
_LONE = "train"
_ENOUGH = 20  # files read to recognise the format
_NO_EXTENT = ("point", "points")
_WHOLE = ("rectangle", "rotation")  # shapes that are not parts of an object: other programs group objects


def _recognise(glance: Glance) -> str:
    if glance.is_file:
        return ""
    found = next(filter(_has_keys, glance.nested(".json")[:_ENOUGH]), None)
    return "" if found is None else glance.shown(found)


def _has_keys(path: Path) -> bool:
    return _KEYS.search(start_of(path)) is not None


def _open(glance: Glance) -> dict[str, SplitReader]:
    splits = {split_called(folder.name) for folder in glance.folders} - {""}
    loose = (path for path in glance.nested(".json") if not _split_of(path, glance.path))
    rest = _LONE if not splits or (_LONE not in splits and any(map(_has_keys, loose))) else ""
    return {split: partial(_read, glance.path, split, rest) for split in sorted(splits | {rest} - {""})}


def _read(root: Path, split: str, rest: str, classes: Sequence[str] | None) -> RawSplit:
    """Read the JSON files of a split; the classes are those of all files of the set.

    Args:
        root: the folder.
        split: the split.
        rest: split of the files that are in no folder of a split; "" leaves them out.
        classes: names in the model's order, or None.
    """

    def is_of_split(path: Path) -> bool:
        return (_split_of(path, root) or rest) == split

    images, files = list_images(root), list_files(root, {".json"})
    reader = _LabelmeReader(root, images.files)
    chosen: list[Annotated] = []
    problems = list(files.problems)
    for path in files.files:
        item, wrong = reader.read(path)
        if is_of_split(path):
            problems += wrong
            chosen += [item] if item is not None else []
    own = number_classes(reader.used)
    for item in chosen:
        item.objects = [mark._replace(label=own[reader.used[mark.label]]) for mark in item.objects]
    taken = {item.path for item in chosen}
    without = [path for path in images.files if path not in taken and is_of_split(path)]
    problems += unannotated(root, without, "without a JSON", "left out, as not annotated yet")
    stray = [path for path in files.files if not rest and not _split_of(path, root)]
    if stray:
        message = f"{plural(len(stray), 'JSON file')} in no folder of a split, such as {stray[0].name}: left out"
        problems.append(Problem(str(root), "", message, "annotations without a split"))
    names = {number: name for name, number in own.items()}
    return build_split(chosen, names, classes, source=str(root), problems=problems)


def _split_of(path: Path, root: Path) -> str:
    """Return the split in whose folder a file lies; "" if in none."""
    folders = path.relative_to(root).parts[:-1]
    return split_called(folders[0]) if folders else ""


class _LabelmeReader:
    """Reads the files of a set; ``used`` are the classes by the value of ``Marked.label``."""

    def __init__(self, root: Path, images: Sequence[Path]) -> None:
        self.root = root
        self.used: list[str] = []
        self._numbers: dict[str, int] = {}
        self._finder = FileFinder()
        self._stems: dict[Path, list[Path]] = {}
        self._names: dict[str, list[Path]] = {}
        for image in images:
            self._stems.setdefault(image.with_suffix(""), []).append(image)
            self._names.setdefault(fold(image.name), []).append(image)

    def read(self, path: Path) -> tuple[Annotated | None, list[Problem]]:
        """Return the image that a file describes, and the problems; None if it is not a labelme file."""
        content, problems = _load(path)
        if content is None or "shapes" not in content:
            return None, problems
        file, counts = str(path), Counter[str]()
        name = content.get("imagePath") or path.name
        image = self._image(path, str(name))
        item = Annotated(self._id(image), file, "", _size(content), path=image)
        parts: dict[tuple[str, int | str], int] = {}  # class and group -> position of the object
        joined = 0
        shapes = content["shapes"] if isinstance(content["shapes"], list) else []
        for number, shape in enumerate(shapes, start=1):
            where = f"shape {number}"
            kind = str(shape.get("shape_type") or "polygon") if isinstance(shape, dict) else ""
            if kind in _NO_EXTENT:
                counts["point shape"] += 1
                continue
            box, label = _box(shape, kind)
            if box is None or not label:
                message = "it has no label; dropped" if box else "its points are not pairs of numbers; dropped"
                problems.append(Problem(file, where, message, "malformed box"))
                continue
            if label not in self._numbers:
                self._numbers[label] = len(self.used)
                self.used.append(label)
            at, group = len(item.objects), shape.get("group_id")
            if isinstance(group, int | str) and group != "" and kind not in _WHOLE:
                at = parts.setdefault((label, group), at)
            if at < len(item.objects):
                item.objects[at] = item.objects[at]._replace(box=around((item.objects[at].box, box)))
                joined += 1
                continue
            confidence = as_confidence(shape.get("score"))  # written by AnyLabeling's models
            item.objects.append(Marked(self._numbers[label], box, where, confidence=confidence))
        if joined:
            message = f"{plural(joined, 'shape')} with the class and group_id of another are parts of it, as in labelme"
            problems.append(Problem(file, "", message, "parts of one object"))
        return item, [*problems, *passed_over(file, counts, "there is no extent to make a box of")]

    def _image(self, path: Path, name: str) -> Path:
        """Return the image of a JSON: the one that it names, else the one beside it with the same name."""
        spelt = PurePosixPath(name.replace("\\", "/"))
        named = self._finder.find(Path(os.path.normpath(path.parent / spelt)))  # ../images/a.jpg
        if not spelt.is_absolute() and named.is_file():
            return named
        alike = self._stems.get(path.with_suffix(""), []) or self._alone(path, spelt.name)
        return alike[0] if len(alike) == 1 else path.parent / spelt.name

    def _alone(self, path: Path, name: str) -> list[Path]:
        """Return the images of a name, outside other splits' folders, that have no JSON of their own."""
        named = self._names.get(fold(name), [])
        named = [image for image in named if not image.with_suffix(".json").is_file()]
        return [image for image in named if _split_of(image, self.root) in ("", _split_of(path, self.root))]

    def _id(self, image: Path) -> str:
        return (image.relative_to(self.root) if image.is_relative_to(self.root) else image).as_posix()


def _load(path: Path) -> tuple[dict[str, Any] | None, list[Problem]]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        cause, where = f"it cannot be read: {error.strerror}", ""
    except json.JSONDecodeError as error:
        cause, where = f"not valid JSON ({error.msg})", f"line {error.lineno}, column {error.colno}"
    except (ValueError, RecursionError) as error:
        cause, where = f"not valid JSON ({error})", ""
    else:
        return content if isinstance(content, dict) else None, []
    return None, [Problem(str(path), where, f"{cause}; the image is dropped", "unreadable annotation file")]


def _size(content: dict[str, Any]) -> tuple[float, float] | None:
    try:
        width, height = float(content["imageWidth"]), float(content["imageHeight"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def _box(shape: Any, kind: str) -> tuple[Box | None, str]:
    """Return the upright box around a shape, and its label; None for both if invalid."""
    if not isinstance(shape, dict):
        return None, ""
    label = str(shape.get("label") or "").strip()
    try:
        points = [(float(x), float(y)) for x, y in shape["points"]]
    except (KeyError, TypeError, ValueError, OverflowError):
        return None, label
    if len(points) < 2:
        return None, label
    if kind == "circle":
        (x, y), edge = points[0], points[1]
        radius = math.dist((x, y), edge)
        return (x - radius, y - radius, x + radius, y + radius), label
    return enclosing([point[0] for point in points], [point[1] for point in points]), label


LABELME = Format("labelme", "a folder of labelme's JSON files", _recognise, _open, unfinished=True)
