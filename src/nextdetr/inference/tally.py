"""What a run found in each video, all frames together."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from nextdetr.files import path_text
from nextdetr.inference.prediction import Prediction
from nextdetr.inference.shown import listed

__all__ = ["Tally", "VideoTally"]


class VideoTally:
    """Counts of one video.

    Args:
        first: its first frame.

    Attributes:
        path: of the video.
        frames: that were looked at.
        expected: frames that it has, about, by what its file says; 0 where that says nothing.
        detections: of all frames, by class.
        counted: ``lines`` and ``zones`` of the last frame, where asked for.
        most: the most objects in each zone at once.
    """

    def __init__(self, first: Prediction) -> None:
        self.path, self.frames, self.detections = first.path, 0, Counter[str]()
        self.expected = 0 if first.tags is None else first.tags.frames
        self.counted: dict[str, Any] | None = None
        self.most: list[int] = []
        self._classes: defaultdict[int, Counter[str]] = defaultdict(Counter)  # of each track
        self._began = self._now = time.monotonic()

    def add(self, frame: Prediction) -> None:
        """Count a frame."""
        self.frames += 1
        self._now = time.monotonic()
        counts = frame.counts()
        self.detections.update(counts)
        found = frame.found
        if found.tracker_id is not None:
            for track, name in zip(found.tracker_id.tolist(), found.data["class_name"], strict=True):
                if track >= 0:
                    self._classes[track][str(name)] += 1
        self.counted = frame.counted
        zones = (frame.counted or {}).get("zones", ())
        self.most = [max(pair) for pair in zip(zones, self.most or zones, strict=True)]

    @property
    def seconds(self) -> float:
        """Seconds since the first frame, those before it not included."""
        return self._now - self._began

    @property
    def rate(self) -> float:
        """Frames a second, 0 while that is not known."""
        return (self.frames - 1) / self.seconds if self.frames > 1 and self.seconds > 0 else 0.0

    @property
    def left(self) -> float | None:
        """Seconds that the rest will take; None where it is unknown."""
        known = self.expected > self.frames and self.rate > 0
        return (self.expected - self.frames) / self.rate if known else None

    @property
    def tracks(self) -> Counter[str] | None:
        """Objects that had a track, each once, by the class that they had most often; None without tracks."""
        counts = Counter(classes.most_common(1)[0][0] for classes in self._classes.values())
        return counts if self._classes else None

    def to_json(self) -> dict[str, Any]:
        """Return the video's part of the JSON result; ``seconds`` is what it took."""
        result: dict[str, Any] = {
            "path": path_text(self.path), "frames": self.frames, "seconds": round(self.seconds, 3),
            "detections": dict(self.detections.most_common()),
        }  # fmt: skip
        if self.tracks is not None:
            result["tracks"] = dict(self.tracks.most_common())
        if self.counted is not None:
            result["counted"] = {**self.counted, **({"zones_most": self.most} if self.most else {})}
        return result

    def lines(self) -> Iterator[str]:
        """Yield what is said at the end of the video."""
        speed = f" ({self.rate:.1f} frames a second)" if self.rate else ""
        frames = f"{self.frames:,} frames" if self.frames != 1 else "1 frame"
        yield f"{path_text(self.path)}: {frames}{speed}; {listed(self.detections)} in all frames together"
        parts = [] if self.tracks is None else [f"tracks: {listed(self.tracks)}"]
        counted = self.counted or {}
        for number, line in enumerate(counted.get("lines", ()), start=1):
            parts.append(f"line {number}: {line['in']} in, {line['out']} out")
        for number, most in enumerate(self.most, start=1):
            parts.append(f"zone {number}: {most} at most")
        if parts:
            yield "  " + "; ".join(parts)


class Tally:
    """Counts video by video.

    Attributes:
        videos: one of each, the current one last.
    """

    def __init__(self) -> None:
        self.videos: list[VideoTally] = []
        self._path: str | None = None

    def add(self, prediction: Prediction) -> VideoTally | None:
        """Count a frame; return the counts of its video, or None of an image that is no frame."""
        if prediction.frame is None or prediction.problem is not None:
            return None
        if prediction.begins_video(self._path):
            self.videos.append(VideoTally(prediction))
        self._path = prediction.path
        self.videos[-1].add(prediction)
        return self.videos[-1]
