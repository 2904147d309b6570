"""Annotated pictures, a JPEG file an image, or a PNG file where JPEG takes no side so long."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from PIL import Image

from nextdetr.inference.picture_file import picture_suffix, write_picture
from nextdetr.inference.predictor import Prediction
from nextdetr.inference.writers.names import Stems

__all__ = ["Draw", "PictureFiles", "plain"]

#: Makes the annotated picture of an image or frame.
Draw: TypeAlias = Callable[[Image.Image, Prediction], Image.Image]


class PictureFiles:
    """Writes ``<stem>.jpg`` of each image that could be read, each whole or not at all; frames have their video.

    A picture with a side of more than 65,500 pixels, which JPEG cannot hold, is written as ``<stem>.png``.

    Args:
        folder: where to.
        stems: names the files.
        draw: makes the picture; by default the detections are drawn.
    """

    def __init__(self, folder: Path, stems: Stems, draw: Draw | None = None) -> None:
        self._folder, self._stems, self._draw = folder, stems, draw or plain

    def add(self, prediction: Prediction) -> None:
        """Draw an image and write it."""
        if prediction.image is None or prediction.frame is not None:
            return
        picture = self._draw(prediction.image, prediction)
        write_picture(picture, self._folder / f"{self._stems.of(prediction)}{picture_suffix(picture)}")

    def commit(self) -> None:
        """Do nothing: each picture has its name already."""

    def abort(self) -> None:
        """Do nothing: those that are there are whole."""


def plain(image: Image.Image, prediction: Prediction) -> Image.Image:
    """Draw the detections of an image."""
    return prediction.plot(image)
