"""Corrected images as a COCO data set for ``nextdetr train --data DIR``: the images and their boxes.

``annotations/instances_train.json`` and ``train/``. Image files are named after their content, so another correction of the
same image replaces the first; clients cannot choose file names.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nextdetr.errors import DataError
from nextdetr.files import exclusive, make_directory, write_bytes_atomic, write_text_atomic
from nextdetr.preprocess import Reading
from nextdetr.serve.decode import decode, file_extension, open_checked
from nextdetr.serve.errors import ServeError

__all__ = ["Corrections", "read_boxes"]

MOST_BOXES, LONGEST_CLASS, LONGEST_NAME = 2000, 100, 255
LEAST_SIDE, MOST = 1.0, 1e9  # pixels

Box = tuple[float, float, float, float]


class Corrections:
    """The folder of corrections; its methods may be called by several threads.

    Args:
        folder: created if it is missing.
        max_pixels: maximum pixels of an image.

    Raises:
        ConfigError: another server writes to it.
        DataError: the folder holds something other than corrections.
        WriteError: it cannot be created.
    """

    def __init__(self, folder: Path, max_pixels: int) -> None:
        self.folder, self._max_pixels = folder, max_pixels
        self._file = folder / "annotations" / "instances_train.json"
        self._lock = threading.Lock()
        make_directory(folder / "train")
        self._kept = ExitStack()
        self._kept.enter_context(exclusive(folder))
        self._data = self._read()

    def close(self) -> None:
        """Release the folder."""
        self._kept.close()

    @property
    def count(self) -> int:
        """Number of corrected images."""
        return len(self._data["images"])

    def save(
        self, content: bytes, name: str, boxes: Sequence[tuple[Box, str]], classes: Sequence[str], model: str
    ) -> dict[str, Any]:
        """Write an image with its boxes; an earlier correction of it is replaced.

        Args:
            content: the encoded image.
            name: the client's name for it, stored with the boxes.
            boxes: xyxy in pixels of the upright image, with class names; none means that there is no object.
            classes: classes of the model; new ones are appended.
            model: model whose boxes were corrected.

        Returns:
            ``file``, ``boxes`` and ``images``, the total number of corrected images.

        Raises:
            ServeError: the image cannot be read, or a box does not fit it.
            WriteError: the disk is full, or the folder cannot be written.
        """
        with open_checked(content, name, self._max_pixels) as opened:
            extension = file_extension(opened)
        width, height = decode(content, name, Reading(max_pixels=self._max_pixels)).size
        fitted = [(_fit(box, width, height, number), label) for number, (box, label) in enumerate(boxes, 1)]
        file = f"{hashlib.sha256(content).hexdigest()[:24]}.{extension}"
        with self._lock:
            path = self.folder / "train" / file
            if not path.is_file():
                write_bytes_atomic(path, content)
            entry = {
                "file_name": file, "width": width, "height": height, "source_name": name[:LONGEST_NAME], "model": model,
                "date_captured": datetime.now(UTC).isoformat(timespec="seconds"),
            }  # fmt: skip
            data = _with(self._data, entry, fitted, classes)
            write_text_atomic(self._file, json.dumps(data, ensure_ascii=False))
            self._data = data
        return {"file": file, "boxes": len(fitted), "images": self.count}

    def _read(self) -> dict[str, list[dict[str, Any]]]:
        empty: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": []}
        try:
            data = json.loads(self._file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return empty
        except (OSError, ValueError) as error:
            raise DataError(f"{self._file}: cannot be read as COCO ({error}): move it away, or fix it.") from error
        if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in empty):
            raise DataError(f"{self._file}: it is not a COCO file: move it away, or choose another folder for corrections.")
        return data


def read_boxes(text: bytes) -> list[tuple[Box, str]]:
    """Parse the boxes of a correction: ``{"detections": [{"box": [x1, y1, x2, y2], "class_name": …}, …]}``.

    Raises:
        ServeError: it is malformed (422).
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ServeError(422, "the part annotations is not JSON.") from error
    rows = value.get("detections") if isinstance(value, Mapping) else None
    if not isinstance(rows, list):
        raise ServeError(422, 'the part annotations is {"detections": [{"box": [x1, y1, x2, y2], "class_name": "…"}]}.')
    if len(rows) > MOST_BOXES:
        raise ServeError(422, f"an image has at most {MOST_BOXES} boxes, not {len(rows)}.")
    return [_read_row(row, number) for number, row in enumerate(rows, 1)]


def _read_row(row: Any, number: int) -> tuple[Box, str]:
    box = row.get("box") if isinstance(row, Mapping) else None
    label = row.get("class_name") if isinstance(row, Mapping) else None
    numbers = isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) and abs(v) < MOST for v in box)
    if not numbers:
        raise ServeError(422, f"box {number} is not four numbers [x1, y1, x2, y2].")
    if not isinstance(label, str) or not label.strip() or len(label) > LONGEST_CLASS or not label.isprintable():
        raise ServeError(422, f"box {number} needs a class_name of 1 to {LONGEST_CLASS} printable characters.")
    assert isinstance(box, list)
    x1, y1, x2, y2 = map(float, box)
    return (x1, y1, x2, y2), label.strip()


def _fit(box: Box, width: int, height: int, number: int) -> Box:
    x1, x2 = (min(max(value, 0.0), float(width)) for value in (box[0], box[2]))
    y1, y2 = (min(max(value, 0.0), float(height)) for value in (box[1], box[3]))
    if x2 - x1 < LEAST_SIDE or y2 - y1 < LEAST_SIDE:
        raise ServeError(422, f"box {number} covers less than a pixel of the image, which is {width} x {height}.")
    return x1, y1, x2, y2


def _with(
    data: Mapping[str, list[dict[str, Any]]],
    entry: dict[str, Any],
    boxes: Sequence[tuple[Box, str]],
    classes: Sequence[str],
) -> dict[str, list[dict[str, Any]]]:
    """Return the data set with one more image, or with a correction replaced.

    A class that only the replaced correction had, such as a misspelt one, goes with it, unless it is the model's.
    """
    categories = list(data["categories"])
    ids = {category["name"]: category["id"] for category in categories}
    for name in (*classes, *(label for _, label in boxes)):
        if name not in ids:
            ids[name] = max(ids.values(), default=0) + 1
            categories.append({"id": ids[name], "name": name})
    earlier = next((image["id"] for image in data["images"] if image["file_name"] == entry["file_name"]), None)
    number = earlier or max((image["id"] for image in data["images"]), default=0) + 1
    images = [image for image in data["images"] if image["id"] != number] + [{"id": number, **entry}]
    annotations = [row for row in data["annotations"] if row["image_id"] != number]
    before = {row["category_id"] for row in data["annotations"] if row["image_id"] == number}
    first = max((row["id"] for row in data["annotations"]), default=0) + 1
    for row, ((x1, y1, x2, y2), label) in enumerate(boxes, first):
        area = (x2 - x1) * (y2 - y1)
        annotations.append(
            {"id": row, "image_id": number, "category_id": ids[label], "bbox": [x1, y1, x2 - x1, y2 - y1],
             "area": area, "iscrowd": 0}
        )  # fmt: skip
    unused = before - {row["category_id"] for row in annotations} - {ids[name] for name in classes}
    categories = [category for category in categories if category["id"] not in unused]
    return {**data, "images": images, "annotations": annotations, "categories": categories}
