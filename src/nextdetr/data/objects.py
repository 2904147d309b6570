"""Shared by the readers of other tools' formats: images with objects, on the way to a ``RawSplit``, and their files."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from nextdetr.data.listing import NameIndex, list_images
from nextdetr.data.moved import OtherSplits, find_moved
from nextdetr.data.raw import BoxTable, RawImage, RawSplit, map_classes, plural
from nextdetr.data.records import Problem

__all__ = [
    "EVERY_CLASS", "Annotated", "Box", "Marked", "around", "as_confidence", "build_split", "by_split", "enclosing",
    "locate", "number_classes", "passed_over", "rotated", "split_called", "split_in", "unannotated",
]  # fmt: skip

Box: TypeAlias = tuple[float, float, float, float]

# label of a region that is not evaluated: it becomes a crowd of every class
EVERY_CLASS = -1

_SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip
_CALLED = re.compile(r"([a-z]+)[_-]?(?:(?:19|20)\d\d)?")


class Marked(NamedTuple):
    """An object in an image.

    Attributes:
        label: own id of its class, or ``EVERY_CLASS``.
        box: xyxy, in pixels or fractions, depending on the split.
        where: position in the file.
        crowd: whether it is left out of training and scoring.
        confidence: 0 to 1, of a detector; None if drawn by hand.
    """

    label: int
    box: Box
    where: str
    crowd: bool = False
    confidence: float | None = None


@dataclass(slots=True)
class Annotated:
    """An image as described by its annotations.

    Attributes:
        name: name of the image there; also its id.
        file, where: file that describes it, and the position in it.
        size: declared (width, height), or None.
        objects: its objects.
        path: the image file; None until it is found.
    """

    name: str
    file: str
    where: str = ""
    size: tuple[float, float] | None = None
    objects: list[Marked] = field(default_factory=list)
    path: Path | None = None


def build_split(
    found: Iterable[Annotated],
    own: Mapping[int, str],
    classes: Sequence[str] | None,
    *,
    source: str,
    problems: list[Problem],
    fractions: bool = False,
) -> RawSplit:
    """Convert images with their objects to a split.

    Args:
        found: the images, with their paths.
        own: own id of each class, and its name.
        classes: names in the model's order; None uses ``own``.
        source: file or folder to name if nothing can be used.
        problems: problems found while parsing.
        fractions: whether boxes are fractions of the images.

    Raises:
        DataError: none of ``classes`` is among ``own``.
    """
    mapped, to_label = map_classes(own, classes, source)
    images: list[RawImage] = []
    table = BoxTable()
    for item in found:
        images.append(RawImage(item.path or Path(item.name), item.name, item.file, item.where, item.size))
        for mark in item.objects:
            labels = range(len(mapped[0])) if mark.label == EVERY_CLASS else [to_label.get(mark.label, -1)]
            for label in labels:
                if label < 0:
                    message = f"its class {own.get(mark.label, mark.label)} is not among the classes; dropped"
                    problems.append(Problem(item.file, mark.where, message, "unknown class"))
                else:
                    place = (item.file, mark.where)
                    table.add(len(images) - 1, mark.box, label, place, crowd=mark.crowd, confidence=mark.confidence)
    return table.split(mapped, images, problems, source=source, fractions=fractions)


def locate(found: Sequence[Annotated], folders: Sequence[Path], about: str = "") -> list[Problem]:
    """Find the image file of each entry without a path by its name, and return the problems.

    A name may lack its extension, and may include folders above ours; see ``moved.py`` for paths of another computer. An
    image in a folder of another split is never used. Missing images get the path where they should be.

    Args:
        found: the entries; their paths are set.
        folders: folders of the images, most likely first; their subfolders are searched if the name alone is not enough.
        about: split or file of the names, for names that do not include their split.
    """
    places = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
    problems: list[Problem] = []
    missing: list[Annotated] = []
    for item in found:
        if item.path is None:
            item.path = _plain_place(item.name, places)
            missing += [] if item.path else [item]
    others = OtherSplits(about)
    unclear: dict[int, tuple[Annotated, Path, str]] = {}  # by identity: entry, folder with several such images, message
    for folder in places if missing else ():
        listing = list_images(folder)
        problems += [problem for problem in listing.problems if problem not in problems]
        index = NameIndex([path.relative_to(folder).as_posix() for path in listing.files], folder)
        for item in missing:
            if id(item) in unclear and not folder.is_relative_to(unclear[id(item)][1]):
                continue  # in a part of that folder one of them may be meant, but elsewhere another image may have the name
            hits = [hit for hit in index.find(item.name) if not others.has(index.names[hit], item.name)]
            if len(hits) == 1:
                item.path = listing.files[hits[0]]
                unclear.pop(id(item), None)
            elif len(hits) > 1:
                message = f"{item.name} may be any of {index.describe(hits)}, so none is taken; write the folder too"
                unclear[id(item)] = item, folder, message
        missing = [item for item in missing if item.path is None]
    problems += [Problem(item.file, item.where, message, "ambiguous name") for item, _, message in unclear.values()]
    missing = [item for item in missing if id(item) not in unclear]
    if missing and len(missing) == len(found):
        names = [item.name for item in missing]
        moved = find_moved(names, places, about)
        for position, path in moved.paths.items():
            missing[position].path = path
        problems += moved.tell(names, missing[0].file)
        missing = [item for item in missing if item.path is None]
    for item in (*missing, *(item for item, _, _ in unclear.values())):
        item.path = (places or list(folders))[0] / item.name.replace("\\", "/")
    return problems


def _plain_place(name: str, folders: Sequence[Path]) -> Path | None:
    spelt = name.replace("\\", "/")
    places = (folder / text for folder in folders for text in dict.fromkeys((name, spelt)))
    return next((path for path in places if _is_file(path)), None)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long or has a null byte
        return False


def number_classes(names: Iterable[str]) -> dict[str, int]:
    """Number names in order of appearance: name -> own id, from 0."""
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


def passed_over(file: str, counts: Mapping[str, int], cause: str) -> list[Problem]:
    """Return one problem per kind of thing that was skipped, with its count.

    Args:
        file: file that contains them.
        counts: by kind, in the singular ("tag").
        cause: why they are useless here ("no place in the picture").
    """
    return [
        Problem(file, "", f"{plural(count, kind)} skipped: {cause}", f"{kind} skipped") for kind, count in counts.items()
    ]


def unannotated(place: Path, others: Sequence[Path], which: str, fate: str = "left out") -> list[Problem]:
    """Return one problem for all images without annotations; none if there are none.

    Args:
        place: file or folder to name.
        others: the images.
        which: description of them ("without a label file").
        fate: what is done with them.
    """
    if not others:
        return []
    message = f"{plural(len(others), 'image')} {which}, such as {others[0].name}: {fate}"
    return [Problem(str(place), "", message, "image without annotations")]


def split_called(name: str) -> str:
    """Return train, val or test for a folder or subset with such a name (``Valid``, ``val2017``); else ""."""
    match = _CALLED.fullmatch(name.lower())
    return _SPLITS.get(match[1], "") if match else ""


def split_in(name: str) -> str:
    """Return train, val or test for a file name with such a word (``train_labels``), the first one; else ""."""
    return next((_SPLITS[word] for word in re.split(r"[^a-z0-9]+", name.lower()) if word in _SPLITS), "")


def as_confidence(value: Any) -> float | None:
    """Return a number from 0 to 1; None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    return None


def by_split(files: Iterable[Path], root: Path) -> dict[str, list[Path]]:
    """Group files by the split in their names, else by the folder below ``root``, else as ``train``."""
    splits: dict[str, list[Path]] = {}
    for file in files:
        inside = file.relative_to(root) if file != root and file.is_relative_to(root) else Path(file.name)
        folders = (split_called(part) for part in reversed(inside.parts[:-1]))
        split = split_in(inside.stem) or next((split for split in folders if split), "train")
        splits.setdefault(split, []).append(file)
    return splits


def enclosing(xs: Sequence[float], ys: Sequence[float]) -> Box:
    """Return the upright box around points; NaN if a coordinate is."""
    if any(math.isnan(value) for value in (*xs, *ys)):  # min and max may ignore NaN
        return (math.nan,) * 4
    return min(xs), min(ys), max(xs), max(ys)


def around(boxes: Sequence[Box]) -> Box:
    """Return the upright box around boxes; NaN if a coordinate is."""
    return enclosing([x for box in boxes for x in box[0::2]], [y for box in boxes for y in box[1::2]])


def rotated(box: Box, degrees: float, *, ellipse: bool = False) -> Box:
    """Return the upright box around a rotated rectangle (xyxy), or around the ellipse in it."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    wide, high = abs(box[2] - box[0]) / 2, abs(box[3] - box[1]) / 2
    cosine, sine = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    if ellipse:
        across, down = math.hypot(wide * cosine, high * sine), math.hypot(wide * sine, high * cosine)
    else:
        across, down = wide * cosine + high * sine, wide * sine + high * cosine
    return x - across, y - down, x + across, y + down
