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
from nextdetr.inference.frames import unfold
from nextdetr.inference.objects import Objects
from nextdetr.inference.origin import Origin
from nextdetr.inference.prediction import Prediction, merge_detections
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
from nextdetr.memory import keep_freed_memory
from nextdetr.pictures import kind_of
from nextdetr.postprocess import Detected, postprocess
from nextdetr.preprocess import AS_EVER, ImageSource, Reading

if TYPE_CHECKING:
    import supervision as sv
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
class _Read:
    """An image that was read, with the model's input [3, S, S], or the reason why it was not."""

    item: SourceItem
    image: Image.Image | None = None
    planes: NDArray[np.float32] | None = None
    problem: str | None = None
    more_frames: int = 0
    given: ImageSource | None = None


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
        queries: number of object queries where ``stream`` gets none; None is the model's own.
        camera: runs in the place of ``model``, which it has inside; videos, cameras and streams only.
        thresholds: least score of each class where ``stream`` gets ``auto``; None is ``nextdetr.confidence.DEFAULT``.
        calibrated: least score where ``stream`` gets ``calibrated``.
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
        animations: bool = True,
        merge_iou: float | None = None,
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
            animations: whether the frames of animated GIF and WebP files count as images, as those of videos do.
            merge_iou: IoU, 0 to 1, above which the less sure of two boxes of a class is dropped; None keeps all.

        Raises:
            DataError: at once, a path does not exist, nothing was found, or a class is unknown; at the end, not one of the
                images could be read; on the way, an array is not an image.
            ConfigError: a setting is out of its range.
        """
        least = self.least_scores(confidence)
        for name, value in (("max_detections", max_detections), ("batch_size", batch_size), ("queries", queries)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} is at least 1, not {value}.")
        if merge_iou is not None and not 0 <= merge_iou <= 1:
            raise ConfigError(f"merge_iou is an IoU, 0 to 1, not {merge_iou}.")
        chosen = None if classes is None else select_classes(self.classes, classes)
        queries = queries or self.queries
        items = find_images(sources, videos=True, skipped=self.skipped, recursive=recursive)
        if self._still:
            items = videos_only(items)
        items = unfold(items, animations=animations, reading=self.reading)
        found = self._stream(items, least, chosen, max_detections, queries, batch_size, merge_iou)
        return tell_unreadable(found, self.skipped)

    def _stream(
        self,
        items: Iterable[SourceItem],
        least: NDArray[np.float32],
        classes: list[int] | None,
        max_detections: int,
        queries: int | None,
        batch_size: int,
        merge_iou: float | None,
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
                objects = self.as_objects(detected, least, merge_iou)
                yield Prediction(
                    item.path, *image.size, objects, image, None, item.frame, item.seconds, tags=item.tags, maps=maps,
                    unlikeness=unlike, origin=Origin(item.path, item.in_memory, item.frame, read.given, self.reading),
                )  # fmt: skip
                del read, image

    def _batches(self, items: Iterable[SourceItem], batch_size: int) -> Iterator[list[_Read]]:
        """Images and frames read and resized, in lists of ``batch_size``."""
        batch: list[_Read] = []
        threads = reading_threads(self.backend.device)

        def urgent(item: SourceItem) -> bool:
            """Whether it is of a camera, or perhaps of a program that waits for its result before it gives the next one."""
            return item.live or (batch_size == 1 and item.in_memory)

        for read in read_ahead(items, self._read, ahead=batch_size, threads=threads, urgent=urgent):
            batch.append(read)
            if len(batch) == batch_size or read.item.live:
                yield batch
                batch = []
        if batch:
            yield batch

    def _read(self, item: SourceItem) -> _Read:
        opened = item.open(self.reading)
        planes = None if opened.image is None else self.backend.prepare(opened.image, self.image_size)
        return _Read(item, opened.image, planes, opened.problem, opened.more_frames, opened.given)

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

    def nothing(self) -> Objects:
        """Return no detections, with all fields."""
        return self.as_objects(None, self.least_scores(0.0))

    def as_objects(self, detected: Detected | None, least: NDArray[np.float32], merge_iou: float | None = None) -> Objects:
        """Return what has at least ``least`` [C] of its class, with its name; empty, but with all fields, for None.

        ``merge_iou`` is as in :meth:`stream`.
        """
        if detected is None:
            boxes, scores = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
            labels = np.zeros(0, np.int64)
        else:
            boxes, scores, labels = detected.boxes, detected.scores, detected.labels
            kept = scores >= least[labels]
            boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        found = Objects(boxes, scores, labels, data={"class_name": self._names[labels]})
        return merge_detections(found, merge_iou)


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
        wanted: names, indices, or indices as text (where no class has that text for its name); several may be in one
            text with commas between them, and a name may have commas itself.

    Raises:
        DataError: a class is unknown (the message names the closest one), or none is given.
    """
    chosen: set[int] = set()
    for value in _parts(classes, [wanted] if isinstance(wanted, str) else wanted):
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


def _parts(classes: Sequence[str], wanted: Sequence[str | int]) -> Iterator[str | int]:
    """Split texts at their commas, but not at those of a class's name; the longest name counts."""
    for value in wanted:
        if not isinstance(value, str):
            yield value
            continue
        parts = value.split(",")
        while parts:
            count = next((n for n in range(len(parts), 1, -1) if ",".join(parts[:n]).strip() in classes), 1)
            name, parts = ",".join(parts[:count]).strip(), parts[count:]
            if name:
                yield name
