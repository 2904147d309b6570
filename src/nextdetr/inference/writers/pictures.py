"""Annotated pictures, a JPEG file an image."""

from __future__ import annotations

from pathlib import Path

from nextdetr.files import atomic_write
from nextdetr.inference.drawing import draw_detections
from nextdetr.inference.predictor import Prediction
from nextdetr.inference.writers.names import Stems

__all__ = ["PictureFiles"]


class PictureFiles:
    """Writes ``<stem>.jpg`` of each image that could be read, each whole or not at all; frames have their video.

    Args:
        folder: where to.
        stems: names the files.
    """

    def __init__(self, folder: Path, stems: Stems) -> None:
        self._folder, self._stems = folder, stems

    def add(self, prediction: Prediction) -> None:
        """Draw an image and write it."""
        if prediction.image is None or prediction.frame is not None:
            return
        picture = draw_detections(prediction.image, prediction.detections)
        with atomic_write(self._folder / f"{self._stems.of(prediction)}.jpg") as temporary:
            picture.save(temporary, format="JPEG", quality=92)

    def commit(self) -> None:
        """Do nothing: each picture has its name already."""

    def abort(self) -> None:
        """Do nothing: those that are there are whole."""
