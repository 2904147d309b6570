"""CrowdHuman (https://www.crowdhuman.org): ``annotation_train.odgt``, ``annotation_val.odgt`` and ``Images/``.

A line is a JSON object with the image's ``ID`` and its ``gtboxes``. The only class is person, with the box of the whole
body (``fbox``: x, y, width, height in pixels), which may extend beyond the image and is clipped. Entries tagged ``mask``
(posters, statues, groups) or with ``ignore: 1`` are crowds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nextdetr.data.objects import Annotated, Marked, build_split, locate, split_in
from nextdetr.data.raw import RawSplit, read_lines
from nextdetr.data.recognise import Format, Glance, SplitReader, start_of
from nextdetr.data.records import Problem
from nextdetr.errors import DataError

__all__ = ["CROWDHUMAN"]

_PERSON = "person"
_IMAGES = re.compile(r"images|crowdhuman_(train|val|test)\w*", re.IGNORECASE)


def _files(glance: Glance) -> list[Path]:
    return [path for path in glance.files(".odgt") if b'"gtboxes"' in start_of(path, 1 << 14)]


def _recognise(glance: Glance) -> str:
    return ", ".join(glance.shown(path) for path in _files(glance))


def _open(glance: Glance) -> dict[str, SplitReader]:
    files = _files(glance)
    if not files:
        raise DataError(f"{glance.path}: CrowdHuman's annotations are files NAME.odgt; there is none.")
    return {split_in(file.stem) or file.stem: partial(_read, file) for file in files}


def _read(file: Path, classes: Sequence[str] | None) -> RawSplit:
    problems: list[Problem] = []
    found = []
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            row = json.loads(line)
            name, entries = row["ID"], row["gtboxes"]
            if not isinstance(name, str) or not isinstance(entries, list):
                raise TypeError("ID or gtboxes is of another kind")
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            message = f"not an object with ID and gtboxes ({error}); dropped"
            problems.append(Problem(str(file), where, message, "malformed row"))
            continue
        item = Annotated(name, str(file), where)
        for position, entry in enumerate(entries, start=1):
            mark = _object(entry, f"{where}, box {position}")
            if mark is None:
                message = f"the fbox of box {position} is not x, y, width, height; dropped"
                problems.append(Problem(str(file), where, message, "malformed box"))
            else:
                item.objects.append(mark)
        found.append(item)
    folder = file.parent
    below = sorted(sub for sub in folder.iterdir() if sub.is_dir() and _IMAGES.fullmatch(sub.name))
    problems += locate(found, [*(sub / "Images" for sub in below), *below, folder])
    return build_split(found, {1: _PERSON}, classes, source=str(file), problems=problems)


def _object(entry: Any, where: str) -> Marked | None:
    try:
        x, y, width, height = (float(value) for value in entry["fbox"])
        extra = entry.get("extra") or {}
        ignored = isinstance(extra, Mapping) and extra.get("ignore") == 1
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        return None
    return Marked(1, (x, y, x + width, y + height), where, crowd=ignored or entry.get("tag") != _PERSON)


CROWDHUMAN = Format("crowdhuman", "CrowdHuman's .odgt files", _recognise, _open)
