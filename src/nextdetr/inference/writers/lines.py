"""One line of JSON a frame, written through at once, so that others can read along."""

from __future__ import annotations

from pathlib import Path

from nextdetr.inference.predictor import Prediction
from nextdetr.inference.writers.part import PartFile
from nextdetr.json_text import json_text

__all__ = ["JsonLines"]


class JsonLines:
    """Writes ``<stem>.jsonl``, called ``<stem>.part.jsonl`` until it is finished.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._file = PartFile(path)

    def add(self, prediction: Prediction) -> None:
        """Write the line of a frame."""
        self._file.write((json_text(prediction.to_json()) + "\n").encode())

    def commit(self) -> None:
        """Give the file its name."""
        self._file.commit()

    def abort(self) -> None:
        """Leave the part; each of its lines is whole, but for the last one on a full disk."""
        self._file.abort()
