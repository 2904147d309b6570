"""Boxes in CSV files: one row per box, with the image's name.

Three dialects, recognised by the first line:

- TensorFlow object detection: ``filename,width,height,class,xmin,ymin,xmax,ymax``, in pixels; Roboflow exports it too;
- Open Images: ``ImageID,…,LabelName,Confidence,XMin,XMax,YMin,YMax,…``, as fractions; ``IsGroupOf`` marks crowds, and
  ``class-descriptions*.csv`` beside it names the labels;
- keras-retinanet: no header, ``path,x1,y1,x2,y2,class``; a row with only a path is an image without objects.

A file is a split, by its name (``train_labels.csv``) or its folder. In the first two dialects, an image without objects has
no row. So images without a row count as background if the folder belongs to the split, and are left out and reported if
splits share a folder. If all boxes of a split in pixels lie between 0 and 1, they are read as fractions.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nextdetr.data.listing import list_images
from nextdetr.data.objects import (
    Annotated,
    Box,
    Marked,
    build_split,
    by_split,
    locate,
    number_classes,
    split_called,
    unannotated,
)
from nextdetr.data.raw import RawSplit, plural, read_lines
from nextdetr.data.recognise import Format, Glance, SplitReader, start_of
from nextdetr.data.records import Problem
from nextdetr.data.units import are_fractions
from nextdetr.errors import DataError
from nextdetr.pictures import NAMED_SUFFIXES

__all__ = ["CSV"]

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_ALIASES = {
    "image": ("filename", "file_name", "imageid", "image_id", "image", "image_path", "path", "img", "image_name"),
    "class": ("class", "labelname", "class_name", "label", "category", "name"),
    "xmin": ("xmin", "x_min", "x1"), "ymin": ("ymin", "y_min", "y1"),
    "xmax": ("xmax", "x_max", "x2"), "ymax": ("ymax", "y_max", "y2"),
}  # fmt: skip
_RETINANET = ("image", *_CORNERS, "class")
_DESCRIPTIONS = re.compile(r".*class-descriptions.*\.csv", re.IGNORECASE)


class _Dialect(NamedTuple):
    """Dialect of a file: the column of each value, and whether the first line is a header."""

    columns: Mapping[str, int]
    header: bool

    @property
    def fractions(self) -> bool:
        """Whether boxes are fractions of the image: Open Images."""
        return "groupof" in self.columns


def _dialect(file: Path) -> _Dialect | None:
    """Return the dialect of a file by its first line; None if it holds no boxes."""
    text = start_of(file, 1 << 14).decode("utf-8-sig", "replace")
    row = next(csv.reader(text.splitlines()[:1]), [])
    cells = [cell.strip().lower() for cell in row]
    columns = {key: next((cells.index(a) for a in names if a in cells), -1) for key, names in _ALIASES.items()}
    if min(columns.values()) >= 0:
        more = {"width": "width", "height": "height", "isgroupof": "groupof"}
        columns |= {key: cells.index(cell) for cell, key in more.items() if cell in cells}
        if "groupof" not in columns and "imageid" in cells and "labelname" in cells:
            columns["groupof"] = -1  # Open Images with fewer columns
        return _Dialect(columns, header=True)
    is_image = len(cells) == 6 and Path(cells[0]).suffix in NAMED_SUFFIXES
    if is_image and (_are_numbers(cells[1:5]) or not any(cells[1:])):
        return _Dialect({key: number for number, key in enumerate(_RETINANET)}, header=False)
    return None


def _are_numbers(cells: Sequence[str]) -> bool:
    return all(re.fullmatch(r"-?\d+(\.\d*)?", cell) for cell in cells)


def _files(glance: Glance) -> list[Path]:
    """Return the files with boxes: the path itself, those in the folder, or else those in its subfolders."""
    own = [path for path in glance.files(".csv") if _dialect(path)]
    return own or [path for path in glance.nested(".csv") if _dialect(path)]


def _recognise(glance: Glance) -> str:
    files = _files(glance)
    return ", ".join(glance.shown(path) for path in files[:2]) + (", …" if len(files) > 2 else "")


def _open(glance: Glance) -> dict[str, SplitReader]:
    path = glance.path
    splits = by_split(_files(glance), path)
    return {split: partial(_read, path, splits, split) for split in splits}


def _read(root: Path, splits: Mapping[str, list[Path]], split: str, classes: Sequence[str] | None) -> RawSplit:
    """Read the files of a split; the classes are those of all files of the set."""
    chosen: list[Annotated] = []
    problems: list[Problem] = []
    used: dict[str, int] = {}
    kinds = set()
    files = [_CsvFile(file, used, []) for some in splits.values() for file in some]
    images = {file.path: file.images() for file in files}
    named = {_stem(item.name) for found in images.values() for item in found} if len(splits) > 1 else None
    for file in files:
        if file.path in splits[split]:
            kinds.add(file.dialect.fractions)
            found = images[file.path]
            problems += file.problems
            problems += _find_images(file.path, root, split, found, shared=named)
            chosen += found
    if len(kinds) > 1:
        raise DataError(f"{root}: the files of the split {split} have boxes in pixels and as fractions; keep one kind.")
    top = root if root.is_dir() else root.parent
    names = _descriptions(dict.fromkeys((top, *(file.path.parent for file in files))))
    own = number_classes(names.get(label, label) for label in used)
    ids = {number: own[names.get(label, label)] for label, number in used.items()}
    for item in chosen:
        item.objects = [mark._replace(label=ids[mark.label]) for mark in item.objects]
    by_id = {number: name for name, number in own.items()}
    fractions = True in kinds
    if not fractions and are_fractions(np.array([mark.box for item in chosen for mark in item.objects]).reshape(-1, 4)):
        fractions = True
        message = "all of its boxes lie between 0 and 1, so they are taken for fractions of the images, not for pixels"
        problems.append(Problem(str(splits[split][0]), "", message, "fractions in place of pixels"))
    return build_split(chosen, by_id, classes, source=str(root), problems=problems, fractions=fractions)


def _find_images(
    file: Path, root: Path, split: str, images: list[Annotated], *, shared: Collection[str] | None
) -> list[Problem]:
    """Find the images of a file, and add images of its split's own folder that have no row.

    Args:
        file: the CSV.
        root: folder of the data set.
        split: split of the file.
        images: images of its rows; the others are added.
        shared: names, without extensions, of the images of all splits; None if there is only one split.
    """
    top = root if root.is_dir() else root.parent
    own = [file.parent] if file.parent != top or shared is None else []
    for base in dict.fromkeys((file.parent, top, file.parent / "images", top / "images")):
        folders = sorted(folder for folder in base.iterdir() if folder.is_dir()) if base.is_dir() else []
        own += [folder for folder in folders if split_called(folder.name) == split]
    places = [*own, file.parent / "images", top / "images", file.parent, top]
    problems = locate(images, places, split)
    named = {item.path for item in images}
    folder = _home(named, places)
    if folder is None:
        return problems
    others = [path for path in list_images(folder).files if path not in named]
    unfound = {_stem(item.name) for item in images if item.path is None or not item.path.is_file()}
    problems += unannotated(file, [path for path in others if path.stem in unfound], "that a row without an image may mean")
    others = [path for path in others if path.stem not in unfound]
    if shared is None or folder in own:
        problems += unannotated(file, others, f"in {folder} without a row", "taken as background")
        images += [Annotated(path.relative_to(folder).as_posix(), str(file), "", path=path) for path in others]
    else:  # it is unknown to which split they belong
        problems += unannotated(file, [path for path in others if path.stem not in shared], f"in {folder} without a row")
    return problems


def _stem(name: str) -> str:
    base = name.replace("\\", "/").rpartition("/")[2]
    return base.rpartition(".")[0] or base


def _home(paths: Iterable[Path | None], places: Sequence[Path]) -> Path | None:
    """Return the folder with most of the images, the narrowest on a tie; None if it has none."""
    parents = Counter(path.parent for path in paths if path is not None)
    counts = {place: sum(n for parent, n in parents.items() if parent.is_relative_to(place)) for place in places}
    best = max(places, key=lambda place: (counts[place], len(place.parts)))
    return best if counts[best] else None


def _descriptions(folders: Iterable[Path]) -> dict[str, str]:
    """Return the names of Open Images' labels, if one of the folders has them."""
    names: dict[str, str] = {}
    for file in (file for folder in folders for file in Glance(folder).files(".csv")):
        if _DESCRIPTIONS.fullmatch(file.name):
            rows = csv.reader(read_lines(file))
            names |= {row[0].strip(): row[1].strip() for row in rows if len(row) >= 2 and row[0].startswith("/m/")}
    return names


class _CsvFile:
    """Reads one file; ``used`` numbers the classes in order of appearance."""

    def __init__(self, path: Path, used: dict[str, int], problems: list[Problem]) -> None:
        dialect = _dialect(path)
        if dialect is None:
            raise DataError(
                f"{path}: it holds no boxes: columns for the image, the class, xmin, ymin, xmax and ymax belong."
            )
        self.path, self.dialect, self.used, self.problems = path, dialect, used, problems

    def images(self) -> list[Annotated]:
        """Return the images in order of appearance, each with its boxes.

        Raises:
            DataError: the file cannot be read, or is not CSV; the message has the line.
        """
        found: dict[str, Annotated] = {}
        columns = self.dialect.columns
        for line, row in self._rows():
            where = f"line {line}"
            if len(row) <= max(columns.values()):
                self._bad(where, f"it has {plural(len(row), 'value')}, and {max(columns.values()) + 1} belong; dropped")
                continue
            name = row[columns["image"]].strip()
            if not name:
                self._bad(where, "it names no image; dropped")
                continue
            item = found.setdefault(name, Annotated(name, str(self.path), where, self._size(row)))
            cells = [row[columns[key]].strip() for key in ("class", *_CORNERS)]
            if any(cells):  # all empty: an image without objects
                self._add(
                    item, cells, where, crowd=columns.get("groupof", -1) >= 0 and row[columns["groupof"]].strip() == "1"
                )
        return list(found.values())

    def _add(self, item: Annotated, cells: Sequence[str], where: str, *, crowd: bool) -> None:
        label, *corners = cells
        try:
            box: Box = (float(corners[0]), float(corners[1]), float(corners[2]), float(corners[3]))
        except ValueError:
            self._bad(where, f"its box is {', '.join(corners)[:60]}, not four numbers; dropped")
            return
        if not label:
            self._bad(where, "it names no class; dropped")
            return
        item.objects.append(Marked(self.used.setdefault(label, len(self.used)), box, where, crowd))

    def _bad(self, where: str, message: str) -> None:
        self.problems.append(Problem(str(self.path), where, message, "malformed row"))

    def _size(self, row: Sequence[str]) -> tuple[float, float] | None:
        columns = self.dialect.columns
        try:
            width, height = float(row[columns["width"]]), float(row[columns["height"]])
        except (KeyError, ValueError):
            return None
        return (width, height) if width > 0 and height > 0 else None

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader(read_lines(self.path))
        try:
            for row in reader:
                if row and not (self.dialect.header and reader.line_num == 1):
                    yield reader.line_num, row
        except csv.Error as error:
            raise DataError(f"{self.path}, line {reader.line_num}: not valid CSV ({error}).") from error


CSV = Format(
    "csv", "CSV files of boxes (TensorFlow's, Open Images' or RetinaNet's columns)", _recognise, _open, unfinished=True
)
