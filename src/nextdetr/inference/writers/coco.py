"""COCO results, one file for all images of a run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

from nextdetr.errors import WriteError
from nextdetr.files import path_text
from nextdetr.inference.predictor import Prediction
from nextdetr.inference.writers.part import PartFile

__all__ = ["CocoFile", "coco_results"]


class CocoFile:
    """Writes the COCO results of all images at the end; of a run that is broken off, ``<stem>.part.json``.

    Args:
        path: of the file.
        category_ids: see :func:`coco_results`.
        image_ids: likewise.
    """

    def __init__(
        self, path: Path, category_ids: Sequence[int] | None = None, image_ids: Mapping[str, int] | None = None
    ) -> None:
        self._category_ids, self._image_ids = category_ids, image_ids
        self._path = path
        self._file: PartFile | None = None
        self._seen: list[tuple[str, dict[str, Any]]] = []
        self._of_videos = False  # frames have lines of their own

    def add(self, prediction: Prediction) -> None:
        """Keep what was found in an image."""
        if prediction.frame is None:
            self._open()
            self._seen.append((prediction.path, prediction.to_json()))
        else:
            self._of_videos = True

    def commit(self) -> None:
        """Write the file."""
        if not self._seen and self._of_videos:
            return
        file = self._open()
        try:
            file.write(self._text())
            file.commit()
        except BaseException:
            file.abort()
            raise

    def abort(self) -> None:
        """Write what there is by now under the name of a part."""
        if self._file is None:
            return
        kept = any(result["detections"] for _, result in self._seen)
        with suppress(WriteError):
            if kept:
                self._file.write(self._text())
        self._file.abort(keep=kept)

    def _open(self) -> PartFile:
        if self._file is None:
            self._file = PartFile(self._path)
        return self._file

    def _text(self) -> bytes:
        return json.dumps(_results(self._seen, self._category_ids, self._image_ids), ensure_ascii=False).encode()


def coco_results(
    predictions: Iterable[Prediction],
    *,
    category_ids: Sequence[int] | None = None,
    image_ids: Mapping[str, int] | None = None,
) -> list[dict[str, Any]]:
    """Return detections as COCO results, boxes (x, y, width, height) in pixels.

    ``image_id`` is the data set's own where ``image_ids`` has all images; else the number that the file names consist of,
    as in COCO's own images, where all of them do and differ; else the position of the image, from 1. ``file_name`` is
    added, so that no result is ever in doubt.

    Args:
        predictions: the results.
        category_ids: the data set's own id of each class; by default the class indices.
        image_ids: the data set's own id of each image, by its file name; of a path, also the last parts of it name the
            image.
    """
    return _results([(prediction.path, prediction.to_json()) for prediction in predictions], category_ids, image_ids)


def _results(
    seen: Sequence[tuple[str, dict[str, Any]]], category_ids: Sequence[int] | None, image_ids: Mapping[str, int] | None
) -> list[dict[str, Any]]:
    numbers = _image_numbers([path for path, _ in seen], image_ids)
    results = []
    for number, (path, result) in zip(numbers, seen, strict=True):
        for row in result["detections"]:
            x1, y1, x2, y2 = row["box"]
            label = row["class_id"]
            results.append(
                {
                    "image_id": number,
                    "file_name": path_text(path),
                    "category_id": label if category_ids is None else category_ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": row["confidence"],
                }
            )
    return results


def _image_numbers(paths: Sequence[str], known: Mapping[str, int] | None) -> Sequence[int]:
    """Number the images: by the data set's own ids, by their names, or by their places; never in two of these ways."""
    own = [_known_number(path, known) for path in paths] if known else []
    found = [number for number in own if number is not None]
    if own and len(found) == len(own) and len(set(found)) == len(found):
        return found
    stems = [PurePath(path).stem for path in paths]
    if all(stem.isdecimal() for stem in stems) and len({int(stem) for stem in stems}) == len(stems):
        return [int(stem) for stem in stems]
    return range(1, len(paths) + 1)


def _known_number(path: str, known: Mapping[str, int]) -> int | None:
    """Return the id of the image whose name the path ends in, the longest such name first."""
    parts = PurePath(path).parts
    return next((known[name] for k in range(len(parts)) if (name := "/".join(parts[k:])) in known), None)
