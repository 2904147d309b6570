"""One line of JSON a frame, written through at once, so that others can read along."""

from __future__ import annotations

import json
import os
from pathlib import Path

from nextdetr.inference.predictor import Prediction
from nextdetr.inference.writers.protocol import part_of

__all__ = ["JsonLines"]


class JsonLines:
    """Writes ``<stem>.jsonl``, called ``<stem>.part.jsonl`` until it is finished.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._part = path, part_of(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._part.open("w", encoding="utf-8")

    def add(self, prediction: Prediction) -> None:
        """Write the line of a frame."""
        self._file.write(json.dumps(prediction.to_json(), ensure_ascii=False) + "\n")
        self._file.flush()

    def commit(self) -> None:
        """Give the file its name."""
        try:
            os.fsync(self._file.fileno())
        finally:
            self._file.close()
        self._part.replace(self._path)

    def abort(self) -> None:
        """Leave the part; each of its lines but the last is whole."""
        self._file.close()
