"""COCO detection metrics (Lin et al., arXiv 1405.0312; the rules of pycocotools), computed by faster-coco-eval."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from nextdetr.errors import TrainingError
from nextdetr.inference.running import backend_of
from nextdetr.inference.sources import read_ahead, reading_threads
from nextdetr.postprocess import Detected, postprocess
from nextdetr.preprocess import load_image

if TYPE_CHECKING:
    import torch

    from nextdetr.data.records import DetectionData
    from nextdetr.inference.backend import Backend
    from nextdetr.inference.pytorch.backend import Network

__all__ = ["METRICS", "CocoEvaluator", "EvalResult", "evaluate", "read_batches"]

#: Names of the twelve metrics, in the order of pycocotools.
METRICS = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"),
)
STAGES = ("preprocess", "model", "postprocess")

#: Detections by image position: boxes [K, 4] xyxy pixels, scores [K], labels [K].
State: TypeAlias = dict[int, tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]]


@dataclass(frozen=True, slots=True)
class EvalResult:
    """Scores of one split; AP and AR are fractions, 0 to 1.

    Attributes:
        metrics: the twelve COCO metrics by name; None if undefined (for example without a box of that size).
        per_class: by class name: ``AP`` and ``AP50`` (None if the class has no box) and the number of ``boxes``, without
            crowds.
        images: number of scored images, including those without boxes or detections.
        seconds_per_image: mean times of ``preprocess``, ``model`` and ``postprocess``; empty if nothing was run.
    """

    metrics: dict[str, float | None]
    per_class: dict[str, dict[str, float | int | None]]
    images: int
    seconds_per_image: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain dictionaries and numbers."""
        return asdict(self)


class CocoEvaluator:
    """Collect the detections of a split and compute the COCO metrics.

    Detections in crowd boxes are ignored, areas are taken from the records, and images without detections count as misses.
    For each image and class, the 100 best detections are scored.

    Args:
        data: the images and their boxes; the index in ``update`` is the position in ``data.records``.

    Attributes:
        precision: after ``summarize``, [T, R, C, A, M]: IoU thresholds, recalls, classes, sizes (all, small, medium,
            large), limits on detections; -1 if undefined. None if there was nothing to score.
    """

    def __init__(self, data: DetectionData) -> None:
        self.data = data
        self._found: State = {}
        self.precision: NDArray[np.float64] | None = None

    def update(self, index: int, detected: Detected) -> None:
        """Add the detections of one image; a repeated image (padding of a sampler) replaces the earlier result.

        Those of classes that the data set does not have are left out, as a model that is not trained on it may have more.

        Raises:
            IndexError: there is no such image.
            TrainingError: a box or a score is not finite.
        """
        if not 0 <= index < len(self.data.records):
            raise IndexError(f"there is no image {index} among the {len(self.data.records)} of {self.data.split}.")
        boxes, scores = detected.boxes, detected.scores
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise TrainingError(
                f"the model's output for {self.data.records[index].path} is not finite (NaN or infinity): "
                "its weights are damaged or its training diverged; go back to an earlier checkpoint."
            )
        known = detected.labels < len(self.data.classes)
        self._found[index] = (boxes.reshape(-1, 4)[known], scores[known], detected.labels[known])

    def order(self) -> list[int]:
        """Return the positions of the images in scoring order."""
        ids = self._image_ids()
        return sorted(range(len(ids)), key=ids.__getitem__)

    def state(self) -> State:
        """Return what was collected so far, in a form that can be sent to another process."""
        return dict(self._found)

    def merge(self, states: Iterable[State]) -> None:
        """Add what other processes collected; an image that several of them saw counts once."""
        for state in states:
            self._found.update(state)

    def summarize(self) -> EvalResult:
        """Compute the metrics over all images of the split."""
        classes, records = self.data.classes, self.data.records
        boxes = np.zeros(len(classes), dtype=np.int64)
        for record in records:
            labels = np.asarray(record.labels)[~np.asarray(record.crowd, dtype=bool)]
            boxes += np.bincount(labels, minlength=len(classes))[: len(classes)]
        if not records or not classes:
            return EvalResult(dict.fromkeys(METRICS), _per_class(classes, boxes, None), len(records))
        truth = _truth(self.data, self._image_ids())
        scorer = COCOeval_faster(truth, truth.loadRes(self._results()), "bbox", print_function=_silent)
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
        self.precision = scorer.eval["precision"]
        metrics = {name: _defined(value) for name, value in zip(METRICS, scorer.stats, strict=True)}
        return EvalResult(metrics, _per_class(classes, boxes, self.precision), len(records))

    def _image_ids(self) -> list[int]:
        """Ids for the scorer: the data set's own if possible, since ties between scores are broken by id."""
        ids = [record.image_id for record in self.data.records]
        own = [value for value in ids if isinstance(value, int)]
        return own if len(set(own)) == len(ids) else list(range(1, len(ids) + 1))

    def _results(self) -> list[dict[str, Any]]:
        image_ids = self._image_ids()
        results = []
        for index in sorted(self._found):
            boxes, scores, labels = self._found[index]
            corners = boxes.astype(np.float64)
            corners[:, 2:] -= corners[:, :2]
            results += [
                # faster-coco-eval would fill in a polygon, which box metrics never read
                {"image_id": image_ids[index], "category_id": label, "bbox": box, "score": score, "segmentation": ()}
                for box, score, label in zip(corners.tolist(), scores.tolist(), labels.tolist(), strict=True)
            ]
        return results


def evaluate(
    model: Backend | Network,
    data: DetectionData,
    *,
    image_size: int,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    batches: Iterable[tuple[NDArray[np.float32], Sequence[int]]] | None = None,
    max_detections: int = 300,
    queries: int | None = None,
    rank: int = 0,
    world: int = 1,
    gather: Callable[[Any], list[Any]] | None = None,
    progress: Callable[[int, int], None] | None = None,
    evaluator: CocoEvaluator | None = None,
) -> EvalResult:
    """Run a model over a split and score it.

    Args:
        model: an exported file, or a PyTorch model called as ``model(images)`` (with ``queries=`` if given) that returns a
            ``DetectorOutput``; its mode (train or eval) is restored.
        data: the split.
        image_size: side of the square input in pixels.
        batch_size: images per batch.
        device: device of a PyTorch model.
        batches: pairs (images [B, 3, S, S] 0..1, positions in ``data.records``) to use instead of reading the files.
        max_detections: maximum detections per image; the metrics use the 100 best of each class.
        queries: number of object queries, if not the model's own.
        rank: rank of this process; it scores every ``world``-th image, starting at ``rank``.
        world: number of processes.
        gather: with several processes, returns the values of all of them in each process.
        progress: called with (images done, images in total) of this process.
        evaluator: evaluator of ``data`` to use; it keeps the detections.

    Raises:
        DataError: an image cannot be read.
        TrainingError: the model's output is not finite.
    """
    backend = backend_of(model, device)
    indices = range(rank, len(data.records), world)
    evaluator, seconds = evaluator or CocoEvaluator(data), dict.fromkeys(STAGES, 0.0)
    if batches is None:
        batches = read_batches(data, indices, image_size, batch_size, backend, seconds)
    done = 0
    with backend.evaluating():
        for images, positions in batches:
            sizes = [(data.records[position].height, data.records[position].width) for position in positions]
            found = _run(backend, images, sizes, seconds, max_detections=max_detections, queries=queries)
            for position, detected in zip(positions, found, strict=True):
                evaluator.update(position, detected)
            done += len(positions)
            if progress is not None:
                progress(done, len(indices))
    if gather is not None:
        shares = gather((evaluator.state(), seconds, done))
        evaluator.merge(state for state, _, _ in shares)
        seconds = {stage: sum(share[stage] for _, share, _ in shares) for stage in STAGES}
        done = sum(count for _, _, count in shares)
    result = evaluator.summarize()
    return EvalResult(
        result.metrics, result.per_class, result.images, {stage: seconds[stage] / max(1, done) for stage in STAGES}
    )


def read_batches(
    data: DetectionData,
    indices: Sequence[int],
    image_size: int,
    batch_size: int,
    backend: Backend,
    seconds: dict[str, float] | None = None,
) -> Iterator[tuple[NDArray[np.float32], list[int]]]:
    """Yield batches of images [B, 3, S, S] from their files, prepared by ``backend``, with their positions.

    The reading time is added to ``seconds``.
    """
    seconds = dict.fromkeys(STAGES, 0.0) if seconds is None else seconds

    def read(index: int) -> tuple[NDArray[np.float32], float]:
        started = time.perf_counter()
        image = backend.prepare(load_image(data.records[index].path, data.reading), image_size)  # [3, S, S]
        return image, time.perf_counter() - started

    images, positions = [], []
    for index, (image, elapsed) in zip(
        indices, read_ahead(indices, read, ahead=batch_size, threads=reading_threads(backend.device)), strict=True
    ):
        seconds["preprocess"] += elapsed
        images.append(image)
        positions.append(index)
        if len(images) == batch_size:
            yield np.stack(images), positions  # [B, 3, S, S]
            images, positions = [], []
    if images:
        yield np.stack(images), positions


def _run(
    backend: Backend,
    images: NDArray[np.float32],
    sizes: list[tuple[int, int]],
    seconds: dict[str, float],
    *,
    max_detections: int,
    queries: int | None,
) -> list[Detected]:
    """Run one batch through the model and the postprocessing; adds the times to ``seconds``."""
    started = time.perf_counter()
    output = backend(images, queries=queries)
    between = time.perf_counter()
    found = postprocess(output, sizes, max_detections=max_detections)
    seconds["model"] += between - started
    seconds["postprocess"] += time.perf_counter() - between
    return found


def _truth(data: DetectionData, image_ids: Sequence[int]) -> COCO:
    """Build the annotations for faster-coco-eval; category ids are class indices."""
    annotations: list[dict[str, Any]] = []
    for record, image_id in zip(data.records, image_ids, strict=True):
        corners = np.asarray(record.boxes, dtype=np.float64).reshape(-1, 4)
        extents = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), axis=1).tolist()
        rows = zip(extents, record.labels.tolist(), record.crowd.tolist(), record.areas.tolist(), strict=True)
        annotations += [
            # ids start at 1: the scorer reads 0 as "not matched"
            {
                "id": len(annotations) + number, "image_id": image_id, "category_id": label, "bbox": box, "area": area,
                "iscrowd": int(crowd),
            }
            for number, (box, label, crowd, area) in enumerate(rows, start=1)
        ]  # fmt: skip
    images = [
        {"id": image_id, "width": record.width, "height": record.height}
        for record, image_id in zip(data.records, image_ids, strict=True)
    ]
    categories = [{"id": index, "name": name} for index, name in enumerate(data.classes)]
    return COCO({"images": images, "annotations": annotations, "categories": categories}, print_function=_silent)


def _per_class(
    classes: Sequence[str], boxes: NDArray[np.int64], precision: NDArray[np.float64] | None
) -> dict[str, dict[str, float | int | None]]:
    """AP of each class from precision [T, R, C, areas, limits], T being the IoU thresholds 0.5 to 0.95; -1 is undefined."""
    table: dict[str, dict[str, float | int | None]] = {}
    for index, name in enumerate(classes):
        values: Mapping[str, float | None] = {"AP": None, "AP50": None}
        if precision is not None:
            curve = precision[:, :, index, 0, -1]  # [T, R]
            values = {"AP": _mean(curve), "AP50": _mean(curve[0])}
        table[name] = {**values, "boxes": int(boxes[index])}
    return table


def _mean(values: NDArray[np.float64]) -> float | None:
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else None


def _defined(value: float) -> float | None:
    return None if value < 0 or not np.isfinite(value) else float(value)


def _silent(*_: object) -> None:
    """Discard the library's messages."""
