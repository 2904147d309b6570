"""Objects followed through a video, and counted at lines and in zones.

ByteTrack (arXiv 2110.06864), as the ``trackers`` package has it: sure detections are matched first, unsure ones then carry
on tracks that would be lost. It is given each frame's time, so that a lost object keeps its number for a second, whatever
the rate and however many frames a live source has dropped. Zones are supervision's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from nextdetr.errors import ConfigError, missing_extra
from nextdetr.inference.crossing import CrossingLine
from nextdetr.inference.drawing import draw_detections, line_width, text_size
from nextdetr.inference.fonts import font
from nextdetr.inference.objects import Objects
from nextdetr.inference.predictor import Prediction

if TYPE_CHECKING:
    import supervision as sv

__all__ = ["UNSURE", "Follower", "parse_points"]

UNSURE = 0.1  # least score of a detection that may carry on a track
USUAL_RATE = 30.0  # frames a second where a video does not say
COLOUR = "#ffffff"
STILLS = ""  # stands for the path of images that are no frames of a video


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
        confidence: least score that is shown without a track, one for all classes or [C]; the lowest begins a track.
        track: whether to follow objects; lines need it.
        lines: ``x1,y1,x2,y2`` each.
        zones: ``x1,y1,x2,y2,x3,y3,…`` each, polygons.

    Raises:
        ConfigError: a line or zone is malformed, a line is given without tracking, or the package is missing.

    Lines and zones are in pixels of the video's first frame; where frames change their size on the way, they are taken for
    the same picture at another scale.
    """

    def __init__(
        self, *, confidence: float | NDArray[np.float32], track: bool, lines: Sequence[str] = (), zones: Sequence[str] = ()
    ) -> None:
        self.confidence, self.track = np.asarray(confidence, np.float32), track
        self.lines = [parse_points(line, "line", 2, 2) for line in lines]
        self.zones = [parse_points(zone, "zone", 3) for zone in zones]
        if any(start == end for start, end in self.lines):
            raise ConfigError("--line needs two points that differ.")
        if lines and not track:
            raise ConfigError("--line counts tracked objects: add --track.")
        if track:
            _tracker_class()
        self._sizes: dict[str, tuple[int, int]] = {}  # of each video's first frame; drawing may be a video behind

    def follow(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """Give the detections of each frame their track's number (-1: none yet) and the frame its counts.

        Images that come one after the other, and are no frames of a video, are taken for one.
        """
        path: str | None = None
        for prediction in predictions:
            if prediction.image is None:
                found = Objects.of(prediction.found)
                yield replace(prediction, found=found[self._sure(found)])
                continue
            if prediction.begins_video(path) or _sequence(prediction) != path:
                self._reset(prediction)
            path = _sequence(prediction)
            yield self._frame(prediction)

    def draw(self, image: Image.Image, prediction: Prediction) -> Image.Image:
        """Draw a frame with its detections, numbers, lines and zones."""
        picture = draw_detections(image, prediction.found)
        if not (self.lines or self.zones):
            return picture
        pen = ImageDraw.Draw(picture)
        counts = prediction.counted or {}
        across, down = self._scale(prediction)
        stroke, face = max(3, round(1.5 * line_width(picture.size))), font(round(text_size(picture.size)))

        def write(text: str, beside: tuple[float, float]) -> None:
            # Beside the stroke through the point, and inside the picture.
            most = (picture.width - pen.textlength(text, font=face) - stroke, picture.height - 1.5 * face.size)
            place = [
                max(stroke, min(at + gap, limit)) for at, gap, limit in zip(beside, (2 * stroke, stroke), most, strict=True)
            ]
            pen.text(
                (place[0], place[1]), text, fill=COLOUR, font=face, stroke_width=max(2, stroke // 2), stroke_fill="#000000"
            )

        lines, zones = ([[(x / across, y / down) for x, y in shape] for shape in s] for s in (self.lines, self.zones))
        for line, count in zip(lines, counts.get("lines", ()), strict=True):
            pen.line(line, fill=COLOUR, width=stroke)
            write(f"in {count['in']}, out {count['out']}", line[0])
        for zone, number in zip(zones, counts.get("zones", ()), strict=True):
            pen.line([*zone, zone[0]], fill=COLOUR, width=stroke)
            write(str(number), zone[0])
        return picture

    def _reset(self, first: Prediction) -> None:
        """Start again with the first frame of a video."""
        self._sizes[_sequence(first)] = (first.width, first.height)
        self._tracker: Any = None
        if self.track:
            rate = first.tags.rate if first.tags is not None else 0
            least = float(self.confidence.min(initial=1))
            self._tracker = _tracker_class()(
                track_activation_threshold=least, high_conf_det_threshold=least,
                frame_rate=rate or USUAL_RATE,
            )  # fmt: skip
        self._lines = [CrossingLine(*line) for line in self.lines]
        self._zones = _polygons(self.zones)

    def _scale(self, prediction: Prediction) -> tuple[float, float]:
        """Return what brings a place in this frame into the pixels of the video's first one."""
        width, height = self._sizes.get(_sequence(prediction), (prediction.width, prediction.height))
        return width / prediction.width, height / prediction.height

    def _frame(self, prediction: Prediction) -> Prediction:
        scale = np.tile(np.array(self._scale(prediction), np.float32), 2)
        found = Objects.of(prediction.found)
        if (scale != 1).any():
            found = replace(found, xyxy=found.xyxy * scale)
        if self._tracker is not None:
            found = self._tracked(found, prediction.seconds)
        counted: dict[str, Any] = {}
        if self.lines:
            counted["lines"] = [{"in": line.entered, "out": line.left} for line in self._lines]
        if self.zones:
            inside = found.to_supervision()
            counted["zones"] = [int(zone.trigger(inside).sum()) for zone in self._zones]
        if (scale != 1).any():
            found = replace(found, xyxy=found.xyxy / scale)
        return replace(prediction, found=found, counted=counted or None)

    def _tracked(self, given: Objects, seconds: float | None) -> Objects:
        """Objects that belong to a track or are sure by themselves."""
        # Tracks have no number before their second detection. What crosses a line between the two counts all the same.
        new = [(track, track.get_state_bbox()) for track in self._tracker.tracks if track.tracker_id < 0]
        found = Objects.of(self._tracker.update(given.to_supervision(), timestamp=seconds))
        self._cross([(track.tracker_id, box) for track, box in new if track.tracker_id >= 0], found)
        if len(found) == 0:
            nobody = replace(given, tracker_id=np.zeros(len(given), np.int64))
            return nobody[np.zeros(len(given), bool)]
        assert found.confidence is not None
        assert found.tracker_id is not None
        order = np.argsort(-found.confidence, kind="stable")
        kept = (found.tracker_id >= 0) | self._sure(found)
        return found[order[kept[order]]]

    def _sure(self, found: Objects) -> NDArray[np.bool_]:
        """Whether each detection is shown without a track."""
        assert found.confidence is not None
        assert found.class_id is not None
        least = self.confidence if self.confidence.ndim == 0 else self.confidence[found.class_id]
        sure: NDArray[np.bool_] = found.confidence >= least
        return sure

    def _cross(self, earlier: Sequence[tuple[int, NDArray[Any]]], found: Objects) -> None:
        """Let the lines see where tracks were that have a number only now, and where all are now."""
        numbers = [] if found.tracker_id is None else found.tracker_id.tolist()
        for line in self._lines:
            for number, box in (*earlier, *zip(numbers, found.xyxy, strict=True)):
                if number >= 0:
                    line.see(number, box)
            line.keep({track.tracker_id for track in self._tracker.tracks})


def _sequence(prediction: Prediction) -> str:
    """Return what an image is followed with: its video, or all images that are no frames of one."""
    return STILLS if prediction.frame is None else prediction.path


def _polygons(zones: Sequence[Sequence[tuple[int, int]]]) -> list[sv.PolygonZone]:
    if not zones:
        return []
    from nextdetr.inference._supervision import sv

    return [sv.PolygonZone(polygon=np.array(zone)) for zone in zones]


def _tracker_class() -> Any:
    try:
        from trackers import ByteTrackTracker
    except ImportError as error:
        raise missing_extra("trackers", "track", "--track") from error
    return ByteTrackTracker
