"""VisDrone-DET (https://github.com/VisDrone/VisDrone-Dataset): ``images/`` and ``annotations/`` in a folder per split.

A row is: left, top, width, height in pixels, score, category, truncation, occlusion. Ignored by its own evaluation, and so
crowds here, are ignored regions (category 0) and others (11), both of every class, and rows with a score of 0. The ten
classes are the remaining ones, in order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from nextdetr.data.listing import list_images, subfolders
from nextdetr.data.objects import EVERY_CLASS, Annotated, Marked, build_split, locate, split_called, split_in, unannotated
from nextdetr.data.raw import RawSplit, plural, read_lines
from nextdetr.data.recognise import Format, Glance, SplitReader, start_of
from nextdetr.data.records import Problem
from nextdetr.errors import DataError

__all__ = ["VISDRONE"]

_CLASSES = (
    "pedestrian", "people", "bicycle", "car", "van", "truck", "tricycle", "awning-tricycle", "bus", "motor",
)  # fmt: skip
_IGNORED, _OTHERS = 0, 11
_ROW = re.compile(rb"\s*(-?\d+\s*,\s*){7}-?\d+\s*,?\s*")
_LONE = "train"
_ENOUGH = 50  # annotation files searched for a row; empty ones have no objects


def _is_split(folder: Path) -> bool:
    """Whether a folder holds images and annotations of this form."""
    if not ((folder / "images").is_dir() and (folder / "annotations").is_dir()):
        return False
    files = sorted((folder / "annotations").glob("*.txt"))[:_ENOUGH]
    rows = (start_of(file, 200).splitlines()[:1] for file in files)
    first = next((row[0] for row in rows if row and row[0].strip()), b"")
    return _ROW.fullmatch(first) is not None


def _split_of(folder: str) -> str:
    """Return the split in a folder's name: in VisDrone's own it is in the middle."""
    return split_in(folder) if folder.lower().startswith("visdrone") else split_called(folder)


def _folders(path: Path) -> dict[str, Path]:
    if _is_split(path):
        return {_split_of(path.resolve().name) or _LONE: path}
    below = subfolders(path)
    found: dict[str, Path] = {}
    for folder in below:
        if _is_split(folder):
            split = _split_of(folder.name) or folder.name
            found[folder.name if split in found else split] = folder
    return found


def _recognise(glance: Glance) -> str:
    folders = {} if glance.is_file else _folders(glance.path)
    if not folders:
        return ""
    first = next(iter(folders.values())) / "annotations"
    return f"{first.relative_to(glance.path).as_posix()}/"


def _open(glance: Glance) -> dict[str, SplitReader]:
    path = glance.path
    folders = _folders(path)
    if not folders:
        raise DataError(
            f"{path}: a VisDrone folder has images/ and annotations/*.txt, or folders with both; there is none."
        )
    return {split: partial(_read, folder) for split, folder in folders.items()}


def _read(folder: Path, classes: Sequence[str] | None) -> RawSplit:
    problems: list[Problem] = []
    chosen = []
    for path in sorted((folder / "annotations").glob("*.txt")):
        item = Annotated(path.stem, str(path))
        for number, line in enumerate(read_lines(path), start=1):
            if line.strip(" ,\r"):
                item.objects += _object(line, str(path), f"line {number}", problems)
        chosen.append(item)
    problems += locate(chosen, [folder / "images"])
    named = {item.path for item in chosen}
    others = [path for path in list_images(folder / "images").files if path not in named]
    problems += unannotated(folder / "images", others, "without an annotation file")
    own = dict(enumerate(_CLASSES, start=1))
    return build_split(chosen, own, classes, source=str(folder), problems=problems)


def _object(line: str, file: str, where: str, problems: list[Problem]) -> list[Marked]:
    try:
        values = [int(value) for value in line.strip().rstrip(",").split(",")]
        if len(values) != 8:
            raise ValueError(f"it has {plural(len(values), 'value')} where 8 belong")
    except ValueError as error:
        problems.append(Problem(file, where, f"not a row of VisDrone ({error}); dropped", "malformed label line"))
        return []
    left, top, width, height, score, category, _, _ = values
    label = EVERY_CLASS if category in (_IGNORED, _OTHERS) else category
    return [Marked(label, (left, top, left + width, top + height), where, crowd=label == EVERY_CLASS or score == 0)]


VISDRONE = Format("visdrone", "a VisDrone-DET folder (images/, annotations/*.txt)", _recognise, _open)
