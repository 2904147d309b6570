"""YOLO label files, one an image or frame, with the confidence as a sixth column."""

from __future__ import annotations

from pathlib import Path

from nextdetr.files import write_text_atomic
from nextdetr.inference.predictor import Prediction
from nextdetr.inference.writers.names import Stems

__all__ = ["LabelFiles", "yolo_text"]


class LabelFiles:
    """Writes ``<stem>.txt`` of each image that could be read, and ``<stem>_<frame>.txt`` of each frame.

    Args:
        folder: where to.
        stems: names the files.
    """

    def __init__(self, folder: Path, stems: Stems) -> None:
        self._folder, self._stems = folder, stems

    def add(self, prediction: Prediction) -> None:
        """Write the labels of an image or frame, whole or not at all."""
        if prediction.image is None:
            return
        frame = "" if prediction.frame is None else f"_{prediction.frame:06d}"
        write_text_atomic(self._folder / f"{self._stems.of(prediction)}{frame}.txt", yolo_text(prediction))

    def commit(self) -> None:
        """Do nothing: each file has its name already."""

    def abort(self) -> None:
        """Do nothing: those that are there are whole."""


def yolo_text(prediction: Prediction) -> str:
    """Return lines ``class cx cy width height confidence``, boxes as fractions of the image; "" where nothing is found."""
    lines = []
    width, height = max(1, prediction.width), max(1, prediction.height)
    for row in prediction.to_json()["detections"]:
        x1, y1, x2, y2 = row["box"]
        box = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        lines.append(" ".join([str(row["class_id"]), *(f"{value:.6f}" for value in (*box, row["confidence"]))]))
    return "".join(f"{line}\n" for line in lines)
