"""KITTI's 2D objects (https://www.cvlibs.net/datasets/kitti): ``training/image_2`` and ``training/label_2``.

Other programs write the same rows with class names that contain spaces, and into other folders: ``<split>/image_2`` and
``<split>/label_2`` (datumaro; CVAT, whose split of a single task is ``default``), ``data`` and ``labels`` (FiftyOne).

The columns of a label are: type, truncated, occluded, alpha, left, top, right, bottom, in pixels, then the object in 3D.
``DontCare`` are unlabelled regions: crowds of every class. Lists in ``ImageSets/`` (``train.txt``, ``val.txt``), as others
made them, are the splits; without them everything is ``train``. ``testing/`` has no labels and is not a split.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from nextdetr.data.listing import list_files, list_images, subfolders
from nextdetr.data.objects import (
    EVERY_CLASS,
    Annotated,
    Box,
    Marked,
    as_confidence,
    build_split,
    locate,
    number_classes,
    split_called,
    unannotated,
)
from nextdetr.data.raw import NameList, RawSplit, plural, read_lines, read_name_list
from nextdetr.data.recognise import Format, Glance, SplitReader, start_of
from nextdetr.data.records import Problem
from nextdetr.errors import DataError

__all__ = ["KITTI"]

_LONE = "train"
_NOBODY_LABELLED = "DontCare"
_PAIRS = (("label_2", "image_2"), ("labels", "data"))
_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+|nan|inf)"
_ROW = re.compile(rf"\s*(\S.*?)((?:\s+{_NUMBER}){{14,15}})\s*")  # type, 14 numbers, perhaps a score
_ENOUGH = 20  # label files searched for a row


def _pair(folder: Path) -> tuple[Path, Path] | None:
    """Return the folders of labels and images in a folder; KITTI's own names are trusted, others need a valid row."""
    for labels, images in _PAIRS:
        pair = folder / labels, folder / images
        if pair[0].is_dir() and (labels == "label_2" or (pair[1].is_dir() and _has_rows(pair[0]))):
            return pair
    return None


def _has_rows(folder: Path) -> bool:
    files = sorted(folder.glob("*.txt"))[:_ENOUGH]
    lines = (start_of(path, 400).decode("utf-8", "replace").splitlines()[:1] for path in files)
    return any(_ROW.fullmatch(line[0]) for line in lines if line)


def _pairs(path: Path) -> dict[str, tuple[Path, Path]]:
    """Return the folders of labels and images by split: those of the path, of its ``training``, or of split folders."""
    for folder in (path, path / "training", path / "object" / "training"):
        pair = _pair(folder)
        if pair is not None:
            return {_LONE: pair}
    found = ((folder.name, _pair(folder)) for folder in subfolders(path))
    below = {split_called(name) or name.lower(): pair for name, pair in found if pair is not None}
    splits = {"train": "train" if "train" in below else "default", "val": "val", "test": "test"}
    return {split: below[name] for split, name in splits.items() if name in below}


def _recognise(glance: Glance) -> str:
    pairs = {} if glance.is_file else _pairs(glance.path)
    return next((f"{labels.relative_to(glance.path).as_posix()}/" for labels, _ in pairs.values()), "")


def _lists(path: Path, folder: Path) -> dict[str, Path]:
    for place in (path / "ImageSets", folder / "ImageSets", folder.parent / "ImageSets"):
        found = {name: place / f"{name}.txt" for name in ("train", "val") if (place / f"{name}.txt").is_file()}
        if found:
            return found
    return {}


def _open(glance: Glance) -> dict[str, SplitReader]:
    path = glance.path
    pairs = _pairs(path)
    if not pairs:
        raise DataError(f"{path}: a KITTI folder has training/label_2 with the label files; there is none.")
    lists = _lists(path, pairs[_LONE][0].parent) if list(pairs) == [_LONE] else {}
    if lists:
        return {split: partial(_read, pairs, _LONE, file) for split, file in lists.items()}
    return {split: partial(_read, pairs, split, None) for split in pairs}


def _read(
    pairs: Mapping[str, tuple[Path, Path]], split: str, list_file: Path | None, classes: Sequence[str] | None
) -> RawSplit:
    """Read the labels of a split; the classes are those of the label files of all splits."""
    parsed = {name: _parse(labels) for name, (labels, _) in pairs.items()}
    files, problems = parsed[split]
    labels, images = pairs[split]
    include = NameList("", [("", name) for name in files], []) if list_file is None else read_name_list(list_file)
    kinds = (kind for table, _ in parsed.values() for _, found in table.values() for kind, _ in found)
    own = number_classes(kind for kind in kinds if kind != _NOBODY_LABELLED)
    chosen = []
    for where, name in include.entries:
        if name not in files:
            message = f"there is no {labels / name}.txt; the image is dropped"
            problems.append(Problem(include.file, where, message, "missing annotation file"))
            continue
        file, rows = files[name]
        marks = [mark._replace(label=own.get(kind, EVERY_CLASS)) for kind, mark in rows]
        chosen.append(Annotated(name, file, objects=marks))
    listed = {item.file for item in chosen}
    problems = [p for p in problems if p.file in listed or p.file == include.file] + include.problems
    problems += locate(chosen, [images])
    problems += _unlabelled(images, {str(item.path) for item in chosen}) if list_file is None else []
    names = {number: name for name, number in own.items()}
    return build_split(chosen, names, classes, source=str(labels.parent), problems=problems)


def _unlabelled(images: Path, named: Collection[str]) -> list[Problem]:
    others = [path for path in list_images(images).files if str(path) not in named] if images.is_dir() else []
    return unannotated(images, others, "without a label file")


def _parse(folder: Path) -> tuple[dict[str, tuple[str, list[tuple[str, Marked]]]], list[Problem]]:
    """Return each label file with its rows, by its path without extension, and the problems."""
    found, problems = {}, []
    start = len(f"{folder}{os.sep}")
    for path in list_files(folder, {".txt"}).files:
        file = str(path)
        rows, wrong = _rows(path)
        found[file[start : -len(".txt")].replace(os.sep, "/")] = file, rows
        problems += wrong
    return found, problems


def _rows(path: Path) -> tuple[list[tuple[str, Marked]], list[Problem]]:
    """Return (type, object) of each row, still without class indices, and the problems."""
    found, problems = [], []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"line {number}"
        row = _row(line)
        if row is None:
            shown = plural(len(line.split()), "value")
            message = f"it has {shown}, and a class and 14 numbers belong, perhaps with a score; dropped"
            problems.append(Problem(str(path), where, message, "malformed label line"))
            continue
        kind, box, score = row
        found.append((kind, Marked(0, box, where, kind == _NOBODY_LABELLED, score)))
    return found, problems


def _row(line: str) -> tuple[str, Box, float | None] | None:
    """Return the class, box and confidence (in results) of a row; None if it is malformed."""
    kind, *fields = line.split()
    for _ in range(2):
        if len(fields) in (14, 15):  # the usual case
            try:
                float(fields[0])  # fails if the class has several words
                left, top, right, bottom = (float(value) for value in fields[3:7])
                score = as_confidence(float(fields[14])) if len(fields) == 15 else None
            except ValueError:
                pass
            else:
                return kind, (left, top, right, bottom), score
        match = _ROW.fullmatch(line)
        if match is None:
            break
        kind, fields = match[1], match[2].split()
    return None


KITTI = Format("kitti", "a KITTI folder (training/image_2, training/label_2)", _recognise, _open)
