"""ultralytics NDJSON (https://docs.ultralytics.com/datasets/detect): a line for the set, then one per image.

The first line has ``class_names``; an image's line has ``file``, ``split`` and ``annotations``, whose rows are those of
YOLO label files: ``boxes``, ``segments`` or ``obb`` (four corners), which give their enclosing box, or ``pose``, of which
the box is used. Nothing is fetched from ``url``: the images must be next to the file, in ``images/SPLIT``, ``SPLIT`` or the
folder named by ``path`` or ``name``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nextdetr.data.objects import Annotated, Box, Marked, build_split, enclosing, locate, split_called
from nextdetr.data.raw import RawSplit, read_lines
from nextdetr.data.recognise import Format, Glance, SplitReader, start_of
from nextdetr.data.records import Problem
from nextdetr.errors import DataError

__all__ = ["NDJSON"]

_LONE = "train"
_HEAD = re.compile(rb'"type"\s*:\s*"dataset"')
_SPLIT = re.compile(r'"split"\s*:\s*"([^"\\]*)"')
_SHAPES = ("boxes", "segments", "obb", "pose")


def _file(glance: Glance) -> Path | None:
    files = [path for path in glance.files(".ndjson", ".jsonl") if _HEAD.search(start_of(path, 1 << 16))]
    return files[0] if len(files) == 1 else None


def _recognise(glance: Glance) -> str:
    file = _file(glance)
    return "" if file is None else glance.shown(file)


def _open(glance: Glance) -> dict[str, SplitReader]:
    file = _file(glance)
    assert file is not None
    found = (match[1] if (match := _SPLIT.search(line)) else "" for line in read_lines(file)[1:] if line.strip())
    splits = dict.fromkeys(_plain(split) for split in found)
    return {split: partial(_read, file, split) for split in splits}


def _plain(split: str) -> str:
    return split_called(split) or split or _LONE


def _read(file: Path, split: str, classes: Sequence[str] | None) -> RawSplit:
    problems: list[Problem] = []
    found: list[Annotated] = []
    head: dict[str, Any] = {}
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            row = json.loads(line)
            kind = row.get("type")
        except (ValueError, RecursionError, AttributeError) as error:
            problems.append(Problem(str(file), where, f"not a JSON object ({error}); dropped", "malformed row"))
            continue
        if kind == "dataset":
            head = row
        elif kind == "image" and _plain(str(row.get("split") or "")) == split:
            found += _image(file, where, row, problems)
    names = _names(head, file)
    folders = [file.parent / part for part in (str(head.get(key) or "") for key in ("path", "name")) if part]
    places = [base / sub for base in (*folders, file.parent) for sub in _sub_folders(base, split)]
    problems += locate(found, places, split)
    return build_split(found, names, classes, source=str(file), problems=problems, fractions=True)


def _names(head: Mapping[str, Any], file: Path) -> dict[int, str]:
    names = head.get("class_names", head.get("names"))
    if isinstance(names, list):
        names = dict(enumerate(names))
    try:
        own = {int(key): str(name).strip() for key, name in names.items()}
    except (AttributeError, TypeError, ValueError):
        own = {}
    if not own:
        raise DataError(f'{file}, line 1: class_names must map numbers to names, as in {{"0": "cat", "1": "dog"}}.')
    return dict(sorted(own.items()))


def _sub_folders(base: Path, split: str) -> list[Path]:
    """Return the folders below ``base`` where the images of a split may lie."""
    found = []
    for folder in (base / "images", base):
        below = sorted(sub for sub in folder.iterdir() if sub.is_dir()) if folder.is_dir() else []
        found += [sub.relative_to(base) for sub in below if split_called(sub.name) == split]
    return [*found, Path("images"), Path()]


def _image(file: Path, where: str, row: Mapping[str, Any], problems: list[Problem]) -> list[Annotated]:
    name = row.get("file")
    if not isinstance(name, str) or not name:
        problems.append(Problem(str(file), where, "it names no file; dropped", "malformed image entry"))
        return []
    item = Annotated(name, str(file), where, _size(row))
    annotations = row.get("annotations") or {}
    for kind, rows in annotations.items() if isinstance(annotations, Mapping) else ():
        if kind not in _SHAPES:
            message = f"annotations of the kind {kind} are not boxes; skipped"
            problems.append(Problem(str(file), where, message, "annotation without a box"))
            continue
        for number, values in enumerate(rows if isinstance(rows, list) else [], start=1):
            try:
                label, *numbers = (float(value) for value in values)
                if not label.is_integer():
                    raise ValueError("the class index is not whole")
                item.objects.append(Marked(int(label), _box(kind, numbers), where))
            except (TypeError, ValueError, OverflowError) as error:
                message = f"number {number} of {kind} is {str(values)[:60]} ({error}); dropped"
                problems.append(Problem(str(file), where, message, "malformed box"))
    return [item]


def _size(row: Mapping[str, Any]) -> tuple[float, float] | None:
    width: Any = row.get("width")
    height: Any = row.get("height")
    try:
        size = float(width), float(height)
    except (TypeError, ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None


def _box(kind: str, numbers: Sequence[float]) -> Box:
    if kind in ("boxes", "pose"):
        if len(numbers) < 4 or (kind == "boxes" and len(numbers) > 5):
            raise ValueError("a class, centre x, centre y, width and height belong")
        x, y, width, height = numbers[:4]
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    if len(numbers) < 6 or len(numbers) % 2:
        raise ValueError("a class and three or more points belong")
    return enclosing(numbers[0::2], numbers[1::2])


NDJSON = Format("ndjson", "an ultralytics NDJSON file", _recognise, _open)
