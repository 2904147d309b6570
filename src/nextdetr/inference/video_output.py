"""Annotated videos and one line of JSON a frame, drawn and written beside the model's work."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Queue
from typing import IO

import numpy as np
from PIL import Image

from nextdetr.inference.drawing import draw_detections
from nextdetr.inference.predictor import Prediction

__all__ = ["Draw", "VideoOutput"]

WAITING = 8  # frames that wait to be drawn

Draw = Callable[[Image.Image, Prediction], Image.Image]


class VideoOutput:
    """What is written of one video, in a thread: drawing and encoding overlap with the model.

    Args:
        picture: annotated video, ``.mp4``; None for none.
        lines: file for a line of JSON a frame, written through at once; None for none.
        draw: makes the picture of a frame; by default its detections are drawn.
    """

    def __init__(self, picture: Path | None, lines: Path | None, draw: Draw | None = None) -> None:
        self._picture, self._lines, self._draw = picture, lines, draw or _plain
        self._waiting: Queue[Prediction | None] = Queue(WAITING)
        self._problem: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="nextdetr-write", daemon=True)
        self._thread.start()

    def add(self, prediction: Prediction) -> None:
        """Hand on a frame; waits while too many are waiting.

        Raises:
            OSError: the disk is full, or something else went wrong with the frames before.
        """
        if self._problem is not None:
            raise self._problem
        self._waiting.put(prediction)

    def close(self) -> None:
        """Write what is waiting and finish the files; raises as ``add`` does."""
        self._waiting.put(None)
        self._thread.join()
        if self._problem is not None:
            raise self._problem

    def _run(self) -> None:
        from nextdetr.inference.video import VideoWriter

        writer: VideoWriter | None = None
        stream: IO[str] | None = None
        try:
            if self._lines is not None:
                self._lines.parent.mkdir(parents=True, exist_ok=True)
                stream = self._lines.open("w", encoding="utf-8")
            while (prediction := self._waiting.get()) is not None:
                if stream is not None:
                    stream.write(json.dumps(prediction.to_json(), ensure_ascii=False) + "\n")
                    stream.flush()
                if self._picture is not None and prediction.image is not None:
                    if writer is None:
                        writer = VideoWriter(self._picture, prediction.width, prediction.height)
                    picture = self._draw(prediction.image, prediction)
                    writer.write(np.asarray(picture), prediction.seconds or 0.0)
        except Exception as error:  # noqa: BLE001 - told to whoever adds the next frame, or closes
            self._problem = error
            while self._waiting.get() is not None:  # so that nobody waits for ever
                pass
        for file in (writer, stream):
            try:
                if file is not None:
                    file.close()
            except Exception as error:  # noqa: BLE001 - likewise; the first one says more
                self._problem = self._problem or error


def _plain(image: Image.Image, prediction: Prediction) -> Image.Image:
    return draw_detections(image, prediction.detections)
