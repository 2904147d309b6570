"""Data sets in a few lines, for the tests of other tools' formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from nextdetr.data.sources import available_splits, load_data
from nextdetr.errors import DataError

from .files import kinds, make_image, write_text

W, H = 60, 40  # of every image
CAT, DOG = ("cat", 24, 12, 36, 28), ("dog", 12, 16, 18, 24)


class Case(NamedTuple):
    """A data set: text of each file (None: an image), expected content of ``train`` by image id, and expected messages."""

    line: str  # what is said to be recognised
    files: dict[str, str | None]
    found: dict[str, list[tuple]] | str  # or a part of the error's message
    kinds: tuple[str, ...] = ()
    classes: tuple[str, ...] = ("cat", "dog")
    splits: tuple[str, ...] = ("train",)
    path: str = "."


def rows(*entries: dict) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def write(root: Path, case: Case) -> Path:
    for name, text in case.files.items():
        if text is None:
            make_image(root / name, (W, H))
        else:
            write_text(root / name, text)
    return root / case.path


def found_in(data) -> dict[str, list[tuple]]:
    found: dict[str, list[tuple]] = {}
    for record in data.records:
        name = str(record.image_id)
        found[name if name not in found else f"{name} (2)"] = [
            (data.classes[label] + (" crowd" if crowd else ""), *(float(value) for value in box))
            for label, box, crowd in zip(record.labels, record.boxes, record.crowd, strict=True)
        ]
    return found


def check_case(case: Case, root: Path) -> None:
    """Read the data set, and check that it is as the case expects, or ends with the expected message."""
    path = write(root, case)
    if isinstance(case.found, str):
        with pytest.raises(DataError, match=case.found):
            load_data(path, "train")
        return
    data = load_data(path, "train")
    found = found_in(data)
    assert list(found) == list(case.found)
    for image, objects in case.found.items():
        assert [entry[0] for entry in found[image]] == [entry[0] for entry in objects]
        assert [entry[1:] for entry in found[image]] == [pytest.approx(entry[1:], abs=1e-4) for entry in objects]
    assert kinds(data) == list(case.kinds)
    assert tuple(data.classes) == case.classes
    assert data.recognised == case.line
    assert available_splits(path) == list(case.splits)
    for split in case.splits:
        load_data(path, split, classes=data.classes)
