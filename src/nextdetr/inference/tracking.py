"""Objects followed through a video, and counted at lines and in zones.

ByteTrack (arXiv 2110.06864), as the ``trackers`` package has it: sure detections are matched first, unsure ones then carry
on tracks that would be lost. Lines and zones are supervision's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from nextdetr.errors import ConfigError
from nextdetr.inference._supervision import rows, sv
from nextdetr.inference.drawing import draw_detections
from nextdetr.inference.predictor import Prediction

__all__ = ["UNSURE", "Follower", "parse_points"]

UNSURE = 0.1  # least score of a detection that may carry on a track
COLOUR, STROKE = "#ffffff", 3


def parse_points(text: str, option: str, least: int, most: int | None = None) -> list[tuple[int, int]]:
    """Read ``x1,y1,x2,y2,…``, pixels of the frame.

    Raises:
        ConfigError: it is no such list, or has too few or too many points.
    """
    try:
        numbers = [int(part) for part in text.replace(" ", "").split(",")]
    except ValueError:
        numbers = []
    points = list(zip(numbers[::2], numbers[1::2], strict=False))
    if len(numbers) % 2 or len(points) < least or (most is not None and len(points) > most):
        wanted = f"{least} points" if least == most else f"{least} points or more"
        raise ConfigError(f"--{option} needs {wanted}, as x1,y1,x2,y2,… in pixels of the frame, not {text!r}.")
    return points


class Follower:
    """Tracks and counts, video by video.

    Args:
        confidence: least score that begins a track, and that is shown without one.
        track: whether to follow objects; lines need it.
        lines: ``x1,y1,x2,y2`` each.
        zones: ``x1,y1,x2,y2,x3,y3,…`` each, polygons.

    Raises:
        ConfigError: a line or zone is malformed, a line is given without tracking, or the package is missing.
    """

    def __init__(self, *, confidence: float, track: bool, lines: Sequence[str] = (), zones: Sequence[str] = ()) -> None:
        self.confidence, self.track = confidence, track
        self.lines = [parse_points(line, "line", 2, 2) for line in lines]
        self.zones = [parse_points(zone, "zone", 3) for zone in zones]
        if lines and not track:
            raise ConfigError("--line counts tracked objects: add --track.")
        if track:
            _tracker_class()
        self._reset()

    def follow(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """Give the detections of each frame their track's number (-1: none yet) and the frame its counts."""
        path: str | None = None
        for prediction in predictions:
            if prediction.frame is None or prediction.image is None:
                sure = prediction.detections.confidence
                assert sure is not None
                yield replace(prediction, detections=rows(prediction.detections, sure >= self.confidence))
                continue
            if prediction.begins_video(path):
                self._reset()
                path = prediction.path
            yield self._frame(prediction)

    def draw(self, image: Image.Image, prediction: Prediction) -> Image.Image:
        """Draw a frame with its detections, numbers, lines and zones."""
        found = prediction.detections
        if found.tracker_id is not None and len(found):
            names = [
                f"{name} {number}" if number >= 0 else str(name)
                for name, number in zip(found.data["class_name"], found.tracker_id, strict=True)
            ]
            found = replace(found, data=found.data | {"class_name": np.array(names)})
        picture = draw_detections(image, found)
        if not (self.lines or self.zones):
            return picture
        pen = ImageDraw.Draw(picture)
        counts = prediction.counted or {}
        for line, count in zip(self.lines, counts.get("lines", ()), strict=True):
            pen.line(line, fill=COLOUR, width=STROKE)
            pen.text(
                _beside(line[0]),
                f"in {count['in']}, out {count['out']}",
                fill=COLOUR,
                stroke_width=2,
                stroke_fill="#000000",
            )
        for zone, number in zip(self.zones, counts.get("zones", ()), strict=True):
            pen.line([*zone, zone[0]], fill=COLOUR, width=STROKE)
            pen.text(_beside(zone[0]), str(number), fill=COLOUR, stroke_width=2, stroke_fill="#000000")
        return picture

    def _reset(self) -> None:
        self._tracker: Any = None
        if self.track:
            self._tracker = _tracker_class()(
                track_activation_threshold=self.confidence, high_conf_det_threshold=self.confidence
            )
        self._lines = [sv.LineZone(start=sv.Point(*a), end=sv.Point(*b)) for a, b in self.lines]
        self._zones = [sv.PolygonZone(polygon=np.array(zone)) for zone in self.zones]

    def _frame(self, prediction: Prediction) -> Prediction:
        found = prediction.detections
        if self._tracker is not None:
            found = self._tracked(found)
        counted: dict[str, Any] = {}
        if self.lines:
            known = found if found.tracker_id is None else rows(found, found.tracker_id >= 0)
            for line in self._lines:
                line.trigger(known)
            counted["lines"] = [{"in": line.in_count, "out": line.out_count} for line in self._lines]
        if self.zones:
            counted["zones"] = [int(zone.trigger(found).sum()) for zone in self._zones]
        return replace(prediction, detections=found, counted=counted or None)

    def _tracked(self, found: sv.Detections) -> sv.Detections:
        """Detections that belong to a track or are sure by themselves."""
        fields = found
        found = self._tracker.update(found)
        if len(found) == 0:
            fields.tracker_id = np.zeros(len(fields), np.int64)
            return rows(fields, np.zeros(len(fields), bool))
        assert found.confidence is not None
        assert found.tracker_id is not None
        order = np.argsort(-found.confidence, kind="stable")
        kept = (found.tracker_id >= 0) | (found.confidence >= self.confidence)
        return rows(found, order[kept[order]])


def _beside(point: tuple[int, int]) -> tuple[int, int]:
    """Return where a text begins that the stroke through the point must not cross."""
    return point[0] + 2 * STROKE, point[1] + STROKE


def _tracker_class() -> Any:
    try:
        from trackers import ByteTrackTracker
    except ImportError as error:
        raise ConfigError("--track needs the package trackers: pip install 'nextdetr[track]'.") from error
    return ByteTrackTracker
