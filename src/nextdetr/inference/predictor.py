"""From sources to detections, one result per image, a batch of images in memory at a time."""

from __future__ import annotations

import difflib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nextdetr.confidence import AUTO, least_scores
from nextdetr.errors import ConfigError, DataError
from nextdetr.files import path_text
from nextdetr.inference._supervision import sv
from nextdetr.inference.frames import unfold
from nextdetr.inference.running import backend_of
from nextdetr.inference.sources import (
    SourceItem,
    Sources,
    find_images,
    none_readable,
    read_ahead,
    reading_threads,
    videos_only,
)
from nextdetr.inference.tags import VideoTags
from nextdetr.memory import keep_freed_memory
from nextdetr.pictures import kind_of
from nextdetr.postprocess import Detected, postprocess
from nextdetr.preprocess import AS_EVER, Reading, resize_to_planes

if TYPE_CHECKING:
    import torch

    from nextdetr.confidence import Confidence
    from nextdetr.inference.backend import Backend
    from nextdetr.inference.familiarity import Familiarity
    from nextdetr.inference.feature_map import FeatureMap
    from nextdetr.inference.pytorch.backend import Network
    from nextdetr.inference.pytorch.recorder import FeatureRecorder
    from nextdetr.inference.pytorch.static_camera import StaticCamera

__all__ = ["Prediction", "Predictor", "select_classes", "tell_unreadable"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What was found in one image.

    Attributes:
        path: path of the image, or its name where it came from memory ("image-1").
        width: of the image in pixels, EXIF orientation applied; 0 where it could not be read.
        height: likewise.
        detections: boxes xyxy in pixels of the image, ``confidence`` 0 to 1, ``class_id`` and ``data["class_name"]``, best
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
    """

    path: str
    width: int
    height: int
    detections: sv.Detections
    image: Image.Image | None = None
    problem: str | None = None
    frame: int | None = None
    seconds: float | None = None
    counted: dict[str, Any] | None = None
    tags: VideoTags | None = None
    maps: list[FeatureMap] | None = None
    unlikeness: float | None = None

    @property
    def unlike_training(self) -> bool | None:
        """Whether the image is more unlike the training images than the detector's limit; None where not checked."""
        return None if self.unlikeness is None else self.unlikeness > 1

    def begins_video(self, path: str | None) -> bool:
        """Whether this is a frame of another video than the frame before, which was of ``path``."""
        return self.frame is not None and (self.frame == 0 or self.path != path)

    def counts(self) -> dict[str, int]:
        """Return how many objects of each class were found, the most frequent class first."""
        return dict(Counter(self._names()).most_common())

    def to_json(self) -> dict[str, Any]:
        """Return the image's part of the JSON result; ``problem`` stands in it only where there is one.

        A path that is not UTF-8 is written as ``path_text`` has it.
        """
        found = self.detections
        confidences = [] if found.confidence is None else found.confidence.tolist()
        labels = [] if found.class_id is None else found.class_id.tolist()
        rows = zip(found.xyxy.tolist(), confidences, labels, self._names(), strict=True)
        detections: list[dict[str, Any]] = [
            {"box": box, "confidence": confidence, "class_id": label, "class_name": name}
            for box, confidence, label, name in rows
        ]
        if found.tracker_id is not None:
            for row, track in zip(detections, found.tracker_id.tolist(), strict=True):
                row["track_id"] = None if track < 0 else track
        result: dict[str, Any] = {"path": path_text(self.path), "width": self.width, "height": self.height}
        if self.frame is not None:
            result |= {"frame": self.frame, "seconds": self.seconds}
        result["detections"] = detections
        if self.counted is not None:
            result["counted"] = self.counted
        if self.unlikeness is not None:
            result |= {"unlikeness": self.unlikeness, "unlike_training": self.unlike_training}
        return result if self.problem is None else {**result, "problem": path_text(self.problem)}

    def _names(self) -> list[str]:
        return [str(name) for name in self.detections.data.get("class_name", ())]


@dataclass(frozen=True, slots=True)
class _Read:
    """An image that was read, with the model's input [3, S, S], or the reason why it was not."""

    item: SourceItem
    image: Image.Image | None = None
    planes: NDArray[np.float32] | None = None
    problem: str | None = None
    more_frames: int = 0


class Predictor:
    """Finds objects in images.

    Args:
        model: an exported file, or a network of torch, called as ``model(images [B, 3, S, S] 0..1)``, with ``queries=``
            where asked for, which returns a ``DetectorOutput``; it is moved to ``device`` and put into evaluation mode.
        classes: class names, in the order of the model's indices.
        image_size: side of the square input in pixels (S).
        device: where a network is to run; by default the best there is.
        reading: how files are read.
        recorder: looks on, so that each prediction has its ``maps``.
        queries: number of object queries where ``stream`` is told none; None is the model's own.
        camera: runs in the place of ``model``, which it has inside; videos, cameras and streams only.
        thresholds: least score of each class where ``stream`` is told ``auto``; None is ``nextdetr.confidence.DEFAULT``.
        calibrated: least score where ``stream`` is told ``calibrated``.
        familiarity: tells images that are unlike the training images; not with a ``camera``, whose maps are approximate.

    Attributes:
        skipped: what was passed over, by kind: ``heic``, ``raw``, ``unreadable`` (files), ``frames`` (of animations, and
            pages, after the first), ``subfolders`` (pictures in those of a folder).

    Raises:
        ConfigError: there is no such device, or the model takes no images of this size.
    """

    def __init__(
        self,
        model: Backend | Network,
        classes: Sequence[str],
        image_size: int,
        *,
        device: str | torch.device | None = None,
        reading: Reading = AS_EVER,
        recorder: FeatureRecorder | None = None,
        queries: int | None = None,
        camera: StaticCamera | None = None,
        thresholds: Sequence[float] | None = None,
        calibrated: float | None = None,
        familiarity: Familiarity | None = None,
    ) -> None:
        self.familiarity = familiarity if camera is None else None
        looking = {"recorder": recorder, "camera": camera, "pooled": self.familiarity is not None}
        self.backend = backend_of(model, device, **looking)
        self.backend.check_size(image_size)
        if self.backend.device == "cpu":
            keep_freed_memory()
        self.classes = list(classes)
        self.image_size = image_size
        self.reading, self.queries = reading, queries
        self._still = camera is not None
        self.thresholds, self.calibrated = thresholds, calibrated
        self.skipped: Counter[str] = Counter()
        self._names = np.array(self.classes, dtype=str)

    def least_scores(self, confidence: Confidence) -> NDArray[np.float32]:
        """Return the least score of a detection of each class, [C].

        Raises:
            ConfigError: ``confidence`` is out of its range.
        """
        return least_scores(confidence, self.thresholds, len(self.classes), calibrated=self.calibrated)

    def predict(self, sources: Sources, **settings: Any) -> list[sv.Detections]:
        """Return one ``Detections`` per image, in order; takes the settings of :meth:`stream`.

        An unreadable image in a folder, pattern or list has an empty entry, and the reason is logged as a warning.
        """
        return [prediction.detections for prediction in self.stream(sources, **settings)]

    def stream(
        self,
        sources: Sources,
        *,
        confidence: Confidence = AUTO,
        classes: Sequence[str | int] | None = None,
        max_detections: int = 300,
        queries: int | None = None,
        batch_size: int = 8,
        recursive: bool = False,
    ) -> Iterator[Prediction]:
        """Yield one prediction per image, in order, however many there are; settings and paths are checked at once.

        A damaged image does not end the run: its prediction is empty and its ``problem`` says why, and a warning is logged.

        Args:
            sources: see :func:`nextdetr.inference.sources.find_images`.
            confidence: least score, 0 to 1: one number, one for each class, ``auto`` or ``calibrated`` (see
                ``nextdetr.confidence``).
            classes: only these, by name or index.
            max_detections: most detections an image.
            queries: number of object queries, where it is not the model's own.
            batch_size: images a step.
            recursive: whether the subfolders of folders are entered.

        Raises:
            DataError: at once, a path does not exist, nothing was found, or a class is unknown; at the end, not one of the
                images could be read; on the way, an array is not an image.
            ConfigError: a setting is out of its range.
        """
        least = self.least_scores(confidence)
        for name, value in (("max_detections", max_detections), ("batch_size", batch_size), ("queries", queries)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} is at least 1, not {value}.")
        chosen = None if classes is None else select_classes(self.classes, classes)
        queries = queries or self.queries
        items = find_images(sources, videos=True, skipped=self.skipped, recursive=recursive)
        if self._still:
            items = videos_only(items)
        found = self._stream(items, least, chosen, max_detections, queries, batch_size)
        return tell_unreadable(found, self.skipped)

    def _stream(
        self,
        items: Iterable[SourceItem],
        least: NDArray[np.float32],
        classes: list[int] | None,
        max_detections: int,
        queries: int | None,
        batch_size: int,
    ) -> Iterator[Prediction]:
        for batch in self._batches(items, batch_size):
            found = iter(self._run([read for read in batch if read.problem is None], max_detections, classes, queries))
            while batch:  # taken off the list one by one, so that an image lives no longer than its user wants it
                read = batch.pop(0)
                item, image = read.item, read.image
                if read.problem is not None or image is None:
                    yield Prediction(item.path, 0, 0, self.nothing(), None, read.problem, item.frame, item.seconds)
                    continue
                self.skipped.update({"frames": read.more_frames} if read.more_frames else {})
                detected, maps, unlike = next(found)
                detections = self.as_detections(detected, least)
                yield Prediction(
                    item.path, *image.size, detections, image, None, item.frame, item.seconds, tags=item.tags, maps=maps,
                    unlikeness=unlike,
                )  # fmt: skip
                del read, image

    def _batches(self, items: Iterable[SourceItem], batch_size: int) -> Iterator[list[_Read]]:
        """Images read and resized, in lists of ``batch_size``."""
        batch: list[_Read] = []
        for read in read_ahead(unfold(items), self._read, ahead=batch_size, threads=reading_threads(self.backend.device)):
            batch.append(read)
            if len(batch) == batch_size or read.item.live:
                yield batch
                batch = []
        if batch:
            yield batch

    def _read(self, item: SourceItem) -> _Read:
        opened = item.open(self.reading)
        planes = None if opened.image is None else resize_to_planes(opened.image, self.image_size)
        return _Read(item, opened.image, planes, opened.problem, opened.more_frames)

    def _run(
        self, batch: list[_Read], max_detections: int, classes: list[int] | None, queries: int | None
    ) -> list[tuple[Detected, list[FeatureMap] | None, float | None]]:
        """Return for each image what was found in it, its maps, and how unlike the training images it is."""
        planes = [read.planes for read in batch if read.planes is not None]
        if not planes:
            return []
        shown = [(read.item.path, read.image.size) for read in batch if read.image is not None]
        seen = self.backend.look(np.stack(planes), queries=queries, streams=shown)
        sizes = [(height, width) for _, (width, height) in shown]
        found = postprocess(seen.outputs, sizes, max_detections=max_detections, classes=classes)
        unlike: list[float | None] = [None] * len(found)
        if self.familiarity is not None and seen.vectors is not None:
            unlike = self.familiarity.unlikeness(seen.vectors).tolist()
        maps = [None] * len(found) if seen.maps is None else seen.maps
        return list(zip(found, maps, unlike, strict=True))

    def nothing(self) -> sv.Detections:
        """Return no detections, with all fields."""
        return self.as_detections(None, self.least_scores(0.0))

    def as_detections(self, detected: Detected | None, least: NDArray[np.float32]) -> sv.Detections:
        """Detections of at least ``least`` [C] of their class, with their names; empty, but with all fields, for None."""
        if detected is None:
            boxes, scores = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
            labels = np.zeros(0, np.int64)
        else:
            boxes, scores, labels = detected.boxes, detected.scores, detected.labels
            kept = scores >= least[labels]
            boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        return sv.Detections(xyxy=boxes, confidence=scores, class_id=labels, data={"class_name": self._names[labels]})


def tell_unreadable(predictions: Iterable[Prediction], skipped: Counter[str] | None = None) -> Iterator[Prediction]:
    """Pass predictions on, with a warning in the log for each image that could not be read.

    Args:
        predictions: of images, readable or not.
        skipped: counts them by kind; see ``Predictor.skipped``.

    Raises:
        DataError: at the end, not one of the images could be read.
    """
    failed: list[str] = []
    readable = told = 0
    for prediction in predictions:
        if prediction.problem is None:
            readable += 1
        else:
            failed.append(prediction.problem)
            if skipped is not None:
                skipped[kind_of(prediction.path) or "unreadable"] += 1
        if readable or len(failed) > 1:  # the only one there is becomes the error below
            for problem in failed[told:]:
                logger.warning("skipped: %s", path_text(problem))
            told = len(failed)
        yield prediction
        del prediction  # its image need not outlive its user
    if failed and not readable:
        raise none_readable(failed)


def select_classes(classes: Sequence[str], wanted: Sequence[str | int]) -> list[int]:
    """Return the indices that are meant, ascending, each once.

    Args:
        classes: the model's class names.
        wanted: names, indices, or indices as text (where no class has that text for its name).

    Raises:
        DataError: a class is unknown (the message names the closest one), or none is given.
    """
    chosen: set[int] = set()
    for value in [wanted] if isinstance(wanted, str) else wanted:
        if isinstance(value, str) and value in classes:
            chosen.add(classes.index(value))
        elif str(value).isdecimal() and int(value) < len(classes):
            chosen.add(int(value))
        else:
            close = difflib.get_close_matches(str(value).lower(), [name.lower() for name in classes], n=1, cutoff=0.5)
            names = [name for name in classes if name.lower() in close]
            listed = ", ".join(classes[:20]) + (", …" if len(classes) > 20 else "")
            hint = f"did you mean {names[0]}? " if names else ""
            raise DataError(f"the model has no class {value}: {hint}it knows {len(classes)}: {listed}.")
    if not chosen:
        raise DataError("the class filter is empty: name at least one class, or leave it out.")
    return sorted(chosen)
