"""Data sets in a few lines: their files, and the expected content."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from nextdetr.data.sources import load_data
from nextdetr.errors import DataError

from .files import kinds, make_image, write_text, write_xml

W, H = 60, 40  # of every image; the boxes below are in its pixels
CAT, DOG = "0 0.5 0.5 0.2 0.4", "1 0.25 0.5 0.1 0.2"
CAT_BOX, DOG_BOX = ("cat", 24, 12, 36, 28), ("dog", 12, 16, 18, 24)


class Case(NamedTuple):
    """A data set: text of each file (None: an image), expected content, and expected messages."""

    files: dict[str, str | None]
    found: dict[str, list[tuple]] | str  # by image id; or a part of the error's message
    kinds: tuple[str, ...] = ()
    path: str = "."


def write(root: Path, case: Case) -> Path:
    for name, text in case.files.items():
        if text is None:
            make_image(root / name, (W, H))
        elif name.lower().endswith(".xml"):
            named = "photo.jpg" if "JPEGImages/photo.jpg" in case.files else ""
            write_xml(root / name, text, size=(W, H), filename=named)
        else:
            write_text(root / name, text)
    return root / case.path


def check(data, case: Case) -> None:
    found = {
        str(record.image_id): [
            (data.classes[label], *(round(float(value), 3) for value in box))
            for label, box in zip(record.labels, record.boxes, strict=True)
        ]
        for record in data.records
    }
    assert found == case.found
    assert kinds(data) == list(case.kinds)


def check_case(case: Case, root: Path) -> None:
    """Write a data set, and check that its split ``train`` is read as the case expects, or refused."""
    path = write(root, case)
    if isinstance(case.found, str):
        with pytest.raises(DataError, match=case.found):
            load_data(path, "train")
    else:
        check(load_data(path, "train"), case)
