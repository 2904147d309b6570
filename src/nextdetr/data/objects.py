"""What readers of other tools' formats share: images and their objects on the way to a ``RawSplit``, and their files."""

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
    "EVERY_CLASS", "Annotated", "Box", "Marked", "as_confidence", "build_split", "by_split", "enclosing", "locate",
    "number_classes", "passed_over", "rotated", "split_called", "split_in", "unannotated",
]  # fmt: skip

Box: TypeAlias = tuple[float, float, float, float]

# the label of a region in which nothing is judged: it becomes a crowd of every class
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
        box: xyxy, in pixels or fractions, as the split says.
        where: place in the file.
        crowd: whether it is left out of training and of the score.
        confidence: 0 to 1, how sure a detector was of it; None where it was drawn by hand.
    """

    label: int
    box: Box
    where: str
    crowd: bool = False
    confidence: float | None = None


@dataclass(slots=True)
class Annotated:
    """An image as its annotations have it.

    Attributes:
        name: what they call it; also its id.
        file, where: the file that describes it, and where in it.
        size: (width, height) that is declared, or None.
        objects: what is in it.
        path: the image file; None until it is looked for.
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
    """Turn images with their objects into a split.

    Args:
        found: the images, with their paths.
        own: own id of each class, and its name.
        classes: names in the model's order; None takes ``own``.
        source: the file or folder to name when nothing can be used.
        problems: what was found while parsing.
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
    """Find the image of each entry that has no path yet, by its name, and return what was found on the way.

    A name may lack its ending, and may have folders above ours; see ``moved.py`` for those of another computer. An image in
    a folder of another split is never taken. What is found nowhere gets the place where it should be.

    Args:
        found: the entries; they get their paths.
        folders: where images may lie, the likeliest first; their subfolders are looked through where a name alone is not
            enough.
        about: the split or the file that names the images, for names that do not say their split.
    """
    places = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
    problems: list[Problem] = []
    missing: list[Annotated] = []
    for item in found:
        if item.path is None:
            item.path = _plain_place(item.name, places)
            missing += [] if item.path else [item]
    others = OtherSplits(about)
    for folder in places if missing else ():
        listing = list_images(folder)
        problems += [problem for problem in listing.problems if problem not in problems]
        index = NameIndex([path.relative_to(folder).as_posix() for path in listing.files], folder)
        for item in missing:
            hits = [hit for hit in index.find(item.name) if not others.has(index.names[hit], item.name)]
            if len(hits) == 1:
                item.path = listing.files[hits[0]]
            elif len(hits) > 1:
                message = f"{item.name} may be any of {index.describe(hits)}, so none is taken; write the folder too"
                problems.append(Problem(item.file, item.where, message, "ambiguous name"))
        missing = [item for item in missing if item.path is None]
    if missing and len(missing) == len(found):
        names = [item.name for item in missing]
        moved = find_moved(names, places, about)
        for position, path in moved.paths.items():
            missing[position].path = path
        problems += moved.tell(names, missing[0].file)
        missing = [item for item in missing if item.path is None]
    for item in missing:
        item.path = (places or list(folders))[0] / item.name.replace("\\", "/")
    return problems


def _plain_place(name: str, folders: Sequence[Path]) -> Path | None:
    spelt = name.replace("\\", "/")
    places = (folder / text for folder in folders for text in dict.fromkeys((name, spelt)))
    return next((path for path in places if _is_file(path)), None)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name longer than the file system has, or one with a zero byte
        return False


def number_classes(names: Iterable[str]) -> dict[str, int]:
    """Number names in the order in which they first come: name -> own id, from 0."""
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


def passed_over(file: str, counts: Mapping[str, int], cause: str) -> list[Problem]:
    """Return one problem a kind of thing that was passed over, with its number.

    Args:
        file: where they stand.
        counts: by kind, in the singular ("tag").
        cause: what makes them useless here ("no place in the picture").
    """
    return [
        Problem(file, "", f"{plural(count, kind)} passed over: {cause}", f"{kind} passed over")
        for kind, count in counts.items()
    ]


def unannotated(place: Path, others: Sequence[Path], which: str, fate: str = "left out") -> list[Problem]:
    """Return one problem for all images that nothing is said of; none where there are none.

    Args:
        place: the file or folder to name.
        others: the images.
        which: what sets them apart ("without a label file").
        fate: what becomes of them.
    """
    if not others:
        return []
    message = f"{plural(len(others), 'image')} {which}, such as {others[0].name}: {fate}"
    return [Problem(str(place), "", message, "image without annotations")]


def split_called(name: str) -> str:
    """Return train, val or test for a folder or a subset that is called so (``Valid``, ``val2017``); else ""."""
    match = _CALLED.fullmatch(name.lower())
    return _SPLITS.get(match[1], "") if match else ""


def split_in(name: str) -> str:
    """Return train, val or test for a file's name that has such a word (``train_labels``), the first one; else ""."""
    return next((_SPLITS[word] for word in re.split(r"[^a-z0-9]+", name.lower()) if word in _SPLITS), "")


def as_confidence(value: Any) -> float | None:
    """Return a number from 0 to 1; None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    return None


def by_split(files: Iterable[Path], root: Path) -> dict[str, list[Path]]:
    """Group files by the splits that their names say, else the folders below ``root`` that they are in, else ``train``."""
    splits: dict[str, list[Path]] = {}
    for file in files:
        inside = file.relative_to(root) if file != root and file.is_relative_to(root) else Path(file.name)
        folders = (split_called(part) for part in reversed(inside.parts[:-1]))
        split = split_in(inside.stem) or next((split for split in folders if split), "train")
        splits.setdefault(split, []).append(file)
    return splits


def enclosing(xs: Sequence[float], ys: Sequence[float]) -> Box:
    """Return the upright box around points; NaN where a coordinate is none."""
    if any(math.isnan(value) for value in (*xs, *ys)):  # which min and max may pass over
        return (math.nan,) * 4
    return min(xs), min(ys), max(xs), max(ys)


def rotated(box: Box, degrees: float, *, ellipse: bool = False) -> Box:
    """Return the upright box around a rectangle (xyxy), or the ellipse in it, that is turned around its centre."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    wide, high = abs(box[2] - box[0]) / 2, abs(box[3] - box[1]) / 2
    cosine, sine = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    if ellipse:
        across, down = math.hypot(wide * cosine, high * sine), math.hypot(wide * sine, high * cosine)
    else:
        across, down = wide * cosine + high * sine, wide * sine + high * cosine
    return x - across, y - down, x + across, y + down
