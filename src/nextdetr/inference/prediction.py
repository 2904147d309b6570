"""What was found in one image, as it comes out of a stream."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from nextdetr.array_boxes import batched_nms
from nextdetr.errors import DataError
from nextdetr.files import path_text
from nextdetr.inference.objects import Found, Objects
from nextdetr.inference.shown import Shown
from nextdetr.inference.tags import VideoTags
from nextdetr.json_text import short_number, short_numbers, short_seconds

if TYPE_CHECKING:
    import supervision as sv
    from PIL import Image

    from nextdetr.inference.feature_map import FeatureMap
    from nextdetr.inference.origin import ImageReader, Origin

__all__ = ["Prediction", "merge_detections"]


@dataclass(frozen=True, slots=True)
class Prediction(Shown):
    """What was found in one image.

    Attributes:
        path: path of the image, or its name where it came from memory ("image-1").
        width: of the image in pixels, EXIF orientation applied; 0 where it could not be read.
        height: likewise.
        found: boxes xyxy in pixels of the image, ``confidence`` 0 to 1, ``class_id`` and ``data["class_name"]``, best
            first; empty where nothing was found.
        image: the image, RGB; None where it could not be read.
        problem: why the image could not be read, a sentence; None where all is well.
        frame: number of the frame, where the image is one of a video; ``path`` is the video's then.
        seconds: its time from the video's start.
        counted: ``lines``, crossings so far, each ``{"in", "out"}``, and ``zones``, objects in each now; where asked for.
        tags: how the frame is shown, where the image is one of a video.
        maps: what the network saw, where a recorder of features looked on; of an image in tiles, of its view as a whole.
        unlikeness: distance from the training images as a multiple of the detector's limit, where that is known; of an
            image in tiles, of its view as a whole.
        origin: where to read the image again, once ``image`` is gone.
    """

    path: str
    width: int
    height: int
    found: Found
    image: Image.Image | None = None
    problem: str | None = None
    frame: int | None = None
    seconds: float | None = None
    counted: dict[str, Any] | None = None
    tags: VideoTags | None = None
    maps: list[FeatureMap] | None = None
    unlikeness: float | None = None
    origin: Origin | None = field(default=None, repr=False, compare=False)

    @property
    def detections(self) -> sv.Detections:
        """What was found, as a ``supervision.Detections``, always the same one; the first one imports supervision."""
        if isinstance(self.found, Objects):
            object.__setattr__(self, "found", self.found.to_supervision())
        return cast("sv.Detections", self.found)

    @property
    def unlike_training(self) -> bool | None:
        """Whether the image is more unlike the training images than the detector's limit; None where not checked."""
        return None if self.unlikeness is None else short_number(self.unlikeness) > 1  # as it is written in JSON

    def begins_video(self, path: str | None) -> bool:
        """Whether this is a frame of another video than the frame before, which was of ``path``."""
        return self.frame is not None and (self.frame == 0 or self.path != path)

    def to_json(self) -> dict[str, Any]:
        """Return the image's part of the JSON result; ``problem`` is in it only where there is one.

        Numbers have the digits of float32, and no more, and times those of microseconds; a path that is not UTF-8 is
        written as ``path_text`` has it.
        """
        found = self.found
        confidences = [] if found.confidence is None else short_numbers(found.confidence)
        labels = [] if found.class_id is None else found.class_id.tolist()
        rows = zip(short_numbers(found.xyxy), confidences, labels, self._names(), strict=True)
        detections: list[dict[str, Any]] = [
            {"box": box, "confidence": confidence, "class_id": label, "class_name": name}
            for box, confidence, label, name in rows
        ]
        if found.tracker_id is not None:
            for row, track in zip(detections, found.tracker_id.tolist(), strict=True):
                row["track_id"] = None if track < 0 else track
        result: dict[str, Any] = {"path": path_text(self.path), "width": self.width, "height": self.height}
        if self.frame is not None:
            result |= {"frame": self.frame, "seconds": None if self.seconds is None else short_seconds(self.seconds)}
        result["detections"] = detections
        if self.counted is not None:
            result["counted"] = self.counted
        if self.unlikeness is not None:
            result |= {"unlikeness": short_number(self.unlikeness), "unlike_training": self.unlike_training}
        return result if self.problem is None else {**result, "problem": path_text(self.problem)}

    def _found(self) -> Found:
        return self.found

    def _called(self) -> tuple[str, int | None]:
        return path_text(self.path), self.frame

    def _picture(self, reader: ImageReader | None = None) -> Image.Image:
        if self.image is not None:
            return self.image
        if self.problem is not None or self.origin is None:
            raise DataError(self.problem or f"{self.path}: the image is not kept.")
        return self.origin.image() if reader is None else reader.image(self.origin)

    def _names(self) -> list[str]:
        return [str(name) for name in self.found.data.get("class_name", ())]


def merge_detections(found: Objects, limit: float | None) -> Objects:
    """Drop of two boxes of a class with an IoU above ``limit`` the less sure one; None keeps all of them."""
    if limit is None or len(found) < 2:
        return found
    assert found.confidence is not None
    assert found.class_id is not None
    boxes, scores, labels = found.xyxy.astype(np.float32), found.confidence, found.class_id.astype(np.int64)
    return found[batched_nms(boxes, scores.astype(np.float32), labels, limit)]
