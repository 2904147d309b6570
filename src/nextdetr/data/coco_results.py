"""COCO results as annotations: a list of detected boxes, as written by ``predict --save json``.

Rows need ``file_name`` and ``category_name`` besides ``bbox`` and ``score``: the ids of COCO results mean nothing without
the file that they refer to. An image without detections has no row, and is not in the set.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nextdetr.data.recognise import start_of
from nextdetr.errors import DataError

__all__ = ["from_results", "is_results_file"]

_START = re.compile(rb"\s*\[\s*\{")
_KEYS = (b'"bbox"', b'"score"')


def is_results_file(path: Path) -> bool:
    """Whether a JSON file starts as a list whose first row has a box and a score."""
    start = start_of(path)
    return _START.match(start) is not None and all(key in start for key in _KEYS)


def from_results(rows: list[Any], path: Path) -> dict[str, list[Any]]:
    """Convert a list of results to a COCO object; rows that are not objects are kept as they are.

    Raises:
        DataError: rows are not results, or do not name their images or classes.
    """
    found = [row for row in rows if isinstance(row, dict)]
    if not found or not all("score" in row for row in found):
        raise DataError(
            f"{path}: not a COCO file, which is an object with images, annotations and categories; a list is for results, "
            "and each row of those has a score."
        )
    for key, what in (("file_name", "image"), ("category_name", "class")):
        lacking = next((number for number, row in enumerate(found, start=1) if not isinstance(row.get(key), str)), 0)
        if lacking:
            raise DataError(
                f"{path}, row {lacking}: it has no {key}, so nothing says which {what} is meant; predict --save json "
                f"writes results that can be trained on."
            )
    images = {name: number for number, name in enumerate(dict.fromkeys(row["file_name"] for row in found), start=1)}
    names = dict.fromkeys(row["category_name"] for row in found)
    ids = _category_ids(found, list(names))
    return {
        "images": [{"id": number, "file_name": name} for name, number in images.items()],
        "annotations": [
            {**row, "image_id": images[row["file_name"]], "category_id": ids[row["category_name"]]}
            if isinstance(row, dict)
            else row
            for row in rows
        ],
        "categories": [{"id": number, "name": name} for name, number in sorted(ids.items(), key=lambda item: item[1])],
    }


def _category_ids(rows: list[dict[str, Any]], names: list[str]) -> dict[str, int]:
    """Return the id of each class: the rows' own if they are unique, which keeps their order."""
    given: dict[str, int] = {}
    for row in rows:
        number = row.get("category_id")
        if (
            not isinstance(number, int)
            or isinstance(number, bool)
            or given.setdefault(row["category_name"], number) != number
        ):
            return {name: position for position, name in enumerate(names)}
    return given if len(set(given.values())) == len(given) else {name: position for position, name in enumerate(names)}
