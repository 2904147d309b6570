"""COCO results, one file for all images of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nextdetr.errors import WriteError
from nextdetr.files import path_text
from nextdetr.identity import Identity
from nextdetr.inference.prediction import Prediction
from nextdetr.inference.writers.part import PartFile
from nextdetr.json_text import json_text, short_numbers

__all__ = ["CocoFile", "coco_results"]


class CocoFile:
    """Writes the COCO results of all images at the end; of a run that is broken off, ``<stem>.part.json``.

    Args:
        path: of the file.
        identity: see :func:`coco_results`.
    """

    def __init__(self, path: Path, identity: Identity | None = None) -> None:
        self._path, self._identity = path, identity or Identity()
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
        return json_text(_results(self._seen, self._identity)).encode()


def coco_results(predictions: Iterable[Prediction], *, identity: Identity | None = None) -> list[dict[str, Any]]:
    """Return detections as COCO results, boxes (x, y, width, height) in pixels.

    ``category_id`` and ``image_id`` are the data set's own where they are known (see ``Identity``); ``file_name`` and
    ``category_name`` are added, so that no result is ever in doubt, and that results can be trained on.

    Args:
        predictions: the results.
        identity: what the data set calls its classes and images.
    """
    return _results([(prediction.path, prediction.to_json()) for prediction in predictions], identity or Identity())


def _results(seen: Sequence[tuple[str, dict[str, Any]]], identity: Identity) -> list[dict[str, Any]]:
    results = []
    for image_id, (path, result) in zip(identity.images([path for path, _ in seen]), seen, strict=True):
        for row in result["detections"]:
            x1, y1, x2, y2 = row["box"]
            results.append(
                {
                    "image_id": path_text(image_id) if isinstance(image_id, str) else image_id,
                    "file_name": path_text(path),
                    "category_id": identity.category_id(row["class_id"]),
                    "category_name": row["class_name"],
                    "bbox": [x1, y1, *short_numbers((x2 - x1, y2 - y1))],
                    "score": row["confidence"],
                }
            )
    return results
