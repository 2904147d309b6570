"""YOLO label files, one an image or frame, with the confidence as a sixth column."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from nextdetr.files import write_bytes_atomic, write_text_atomic
from nextdetr.inference.predictor import Prediction
from nextdetr.inference.writers.names import Stems

__all__ = ["LabelFiles", "yolo_text"]


class LabelFiles:
    """Writes ``<stem>.txt`` of each image that could be read, and ``<stem>_<frame>.txt`` of each frame.

    At the end, ``predictions.yaml`` beside the folder makes a data set of them and of the image files that they are of.

    Args:
        folder: where to.
        stems: names the files.
        classes: names in the order of the indices; None writes no YAML.
        root: the folder that all images are below, where the label files have its subfolders.
    """

    def __init__(self, folder: Path, stems: Stems, classes: Sequence[str] | None = None, root: Path | None = None) -> None:
        self._folder, self._stems, self._classes, self._root = folder, stems, classes, root
        self._images: list[str] = []

    def add(self, prediction: Prediction) -> None:
        """Write the labels of an image or frame, whole or not at all."""
        if prediction.image is None:
            return
        frame = "" if prediction.frame is None else f"_{prediction.frame:06d}"
        write_text_atomic(self._folder / f"{self._stems.of(prediction)}{frame}.txt", yolo_text(prediction))
        path = Path(prediction.path)
        if prediction.frame is None and "\n" not in prediction.path and path.is_file():
            self._images.append(str(path.absolute()))

    def commit(self) -> None:
        """Write the YAML; each label file has its name already."""
        if not self._classes or not self._images:
            return
        lines = "".join(f"{path}\n" for path in self._images)
        write_bytes_atomic(self._folder.parent / "predictions.txt", lines.encode("utf-8", "surrogateescape"))
        images = "predictions.txt" if self._root is None else str(self._root.absolute())
        train = {"images": images, "annotations": self._folder.name}
        if self._root is not None:
            train["include"] = "predictions.txt"
        content = {"format": "yolo", "classes": list(self._classes), "train": train}
        text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
        write_text_atomic(self._folder.parent / "predictions.yaml", text)

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
