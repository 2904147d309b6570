"""KITTI's 2D objects (https://www.cvlibs.net/datasets/kitti): ``training/image_2`` and ``training/label_2``.

A label's columns are: type, truncated, occluded, alpha, left, top, right, bottom, in pixels, and what describes the object
in space. ``DontCare`` are regions in which nobody labelled: crowds of every class. Lists in ``ImageSets/`` (``train.txt``,
``val.txt``), as others made them, are the splits; without them all is ``train``. ``testing/`` has no labels and is no
split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from nextdetr.data.listing import list_images
from nextdetr.data.objects import (
    EVERY_CLASS,
    Annotated,
    Marked,
    as_confidence,
    build_split,
    locate,
    number_classes,
    unannotated,
)
from nextdetr.data.raw import NameList, RawSplit, plural, read_lines, read_name_list
from nextdetr.data.recognise import Format, Glance, SplitReader
from nextdetr.data.records import Problem
from nextdetr.errors import DataError

__all__ = ["KITTI"]

_LONE = "train"
_NOBODY_LABELLED = "DontCare"


def _folder(path: Path) -> Path | None:
    """Return the folder that holds ``label_2``: the path itself, or its ``training``."""
    places = (path, path / "training", path / "object" / "training")
    return next((folder for folder in places if (folder / "label_2").is_dir()), None)


def _recognise(glance: Glance) -> str:
    folder = None if glance.is_file else _folder(glance.path)
    return "" if folder is None else f"{(folder / 'label_2').relative_to(glance.path).as_posix()}/"


def _lists(path: Path, folder: Path) -> dict[str, Path]:
    for place in (path / "ImageSets", folder / "ImageSets", folder.parent / "ImageSets"):
        found = {name: place / f"{name}.txt" for name in ("train", "val") if (place / f"{name}.txt").is_file()}
        if found:
            return found
    return {}


def _open(glance: Glance) -> dict[str, SplitReader]:
    path = glance.path
    folder = _folder(path)
    if folder is None:
        raise DataError(f"{path}: a KITTI folder has training/label_2 with the label files; there is none.")
    lists = _lists(path, folder)
    return {split: partial(_read, folder, file) for split, file in lists.items()} or {_LONE: partial(_read, folder, None)}


def _read(folder: Path, list_file: Path | None, classes: Sequence[str] | None) -> RawSplit:
    """Read the labels of a split; the classes are those of all label files."""
    files = {path.stem: path for path in sorted((folder / "label_2").glob("*.txt"))}
    problems: list[Problem] = []
    rows: dict[str, list[tuple[str, Marked]]] = {}
    for stem, path in files.items():
        rows[stem], wrong = _rows(path)
        problems += wrong
    include = NameList("", [("", stem) for stem in files], []) if list_file is None else read_name_list(list_file)
    own = number_classes(kind for found in rows.values() for kind, _ in found if kind != _NOBODY_LABELLED)
    chosen = []
    for where, name in include.entries:
        if name not in files:
            message = f"there is no {folder / 'label_2' / name}.txt; the image is dropped"
            problems.append(Problem(include.file, where, message, "missing annotation file"))
            continue
        marks = [mark._replace(label=own.get(kind, EVERY_CLASS)) for kind, mark in rows[name]]
        chosen.append(Annotated(name, str(files[name]), objects=marks))
    listed = {str(files[item.name]) for item in chosen}
    problems = [p for p in problems if p.file in listed or p.file == include.file] + include.problems
    problems += locate(chosen, [folder / "image_2"])
    problems += _unlabelled(folder, set(files)) if list_file is None else []
    names = {number: name for name, number in own.items()}
    return build_split(chosen, names, classes, source=str(folder), problems=problems)


def _unlabelled(folder: Path, stems: set[str]) -> list[Problem]:
    images = folder / "image_2"
    others = [path for path in list_images(images).files if path.stem not in stems] if images.is_dir() else []
    return unannotated(images, others, "without a label file")


def _rows(path: Path) -> tuple[list[tuple[str, Marked]], list[Problem]]:
    """Return (type, object) of each row, without labels yet, and what is wrong."""
    found, problems = [], []
    for number, line in enumerate(read_lines(path), start=1):
        fields = line.split()
        if not fields:
            continue
        where = f"line {number}"
        try:
            if len(fields) not in (15, 16):  # the sixteenth is a score, as of results
                raise ValueError(f"it has {plural(len(fields), 'value')} where 15 belong")
            left, top, right, bottom = (float(value) for value in fields[4:8])
            score = float(fields[15]) if len(fields) == 16 else math.nan
        except ValueError as error:
            problems.append(Problem(str(path), where, f"{error}; dropped", "malformed label line"))
            continue
        crowd, box = fields[0] == _NOBODY_LABELLED, (left, top, right, bottom)
        found.append((fields[0], Marked(0, box, where, crowd, as_confidence(score))))
    return found, problems


KITTI = Format("kitti", "a KITTI folder (training/image_2, training/label_2)", _recognise, _open)
