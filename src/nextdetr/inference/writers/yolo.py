"""YOLO label files, one an image or frame, with the confidence as a sixth column."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import yaml

from nextdetr.files import path_text, write_bytes_atomic, write_text_atomic
from nextdetr.inference.predictor import Prediction
from nextdetr.inference.writers.names import Stems

__all__ = ["LabelFiles", "yolo_text"]

logger = logging.getLogger(__name__)


class LabelFiles:
    """Writes ``<stem>.txt`` of each image that could be read, and ``<stem>_<frame>.txt`` of each frame.

    At the end, ``predictions.yaml`` beside the folder makes a data set of them and of the image files that they are of. An
    image whose label file has another name, as another image has taken its own, is left out of it, with a warning.

    Args:
        folder: where to.
        stems: names the files.
        classes: names in the order of the indices; None writes no YAML.
        root: the folder that all images are below, where the label files have its subfolders.
    """

    def __init__(self, folder: Path, stems: Stems, classes: Sequence[str] | None = None, root: Path | None = None) -> None:
        self._folder, self._stems, self._classes, self._root = folder, stems, classes, root
        self._images: dict[str, None] = {}
        self._left_out: list[str] = []

    def add(self, prediction: Prediction) -> None:
        """Write the labels of an image or frame, whole or not at all."""
        if prediction.image is None:
            return
        frame, stem = "" if prediction.frame is None else f"_{prediction.frame:06d}", self._stems.of(prediction)
        write_text_atomic(self._folder / f"{stem}{frame}.txt", yolo_text(prediction))
        path = Path(prediction.path)
        if prediction.frame is None and path.is_file():
            whole = str(path.absolute())
            if "\n" not in whole and Path(stem).name == path.stem:
                self._images[whole] = None
            elif whole not in self._images:  # else it was named twice
                self._left_out.append(whole)

    def commit(self) -> None:
        """Write the YAML; each label file has its name already."""
        if self._classes and self._left_out:
            count, example = len(self._left_out), path_text(self._left_out[0])
            what = example if count == 1 else f"{count:,} images, such as {example}"
            logger.warning(
                "predictions.yaml leaves out %s: labels are found by the name of an image, and another image has that "
                "name, or no label file can have it. What --save json writes can be trained on as well.",
                what,
            )
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
