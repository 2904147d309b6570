"""Annotated pictures, a JPEG file an image, or a PNG file where JPEG takes no side so long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nextdetr.files import atomic_write
from nextdetr.inference.drawing import draw_detections
from nextdetr.inference.predictor import Prediction
from nextdetr.inference.writers.names import Stems

__all__ = ["PictureFiles"]

LONGEST_JPEG = 65_500  # pixels of a side, in libjpeg
_JPEG: dict[str, Any] = {"format": "JPEG", "quality": 92}
_PNG: dict[str, Any] = {"format": "PNG"}


class PictureFiles:
    """Writes ``<stem>.jpg`` of each image that could be read, each whole or not at all; frames have their video.

    A picture with a side of more than 65,500 pixels, which JPEG cannot hold, is written as ``<stem>.png``.

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
        ending, settings = ("jpg", _JPEG) if max(picture.size) <= LONGEST_JPEG else ("png", _PNG)
        with atomic_write(self._folder / f"{self._stems.of(prediction)}.{ending}") as temporary:
            picture.save(temporary, **settings)

    def commit(self) -> None:
        """Do nothing: each picture has its name already."""

    def abort(self) -> None:
        """Do nothing: those that are there are whole."""
