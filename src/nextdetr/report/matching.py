"""Match detections with boxes by the rules of the COCO metrics, stored per image, so that AP of any sample is a sum.

The rules are pycocotools' ``evaluateImg`` and ``accumulate`` (Lin et al., arXiv 1405.0312): class by class, in order of
score, each detection takes the free box with the highest IoU; the rest in crowds is ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nextdetr.data.records import ImageRecord

__all__ = ["IOUS", "Found", "Matches", "average_precision", "box_ious", "match", "per_class"]

#: IoU thresholds of AP.
IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MOST = 100  # scored detections per class and image
CHUNK = 4_000_000  # elements per step of the bootstrap

#: Detections by position of their image: boxes [K, 4] xyxy pixels, scores [K], labels [K].
Found = Mapping[int, tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]]


@dataclass(frozen=True, slots=True)
class Matches:
    """Outcome of each detection, for all images and classes together.

    Attributes:
        image: [N] position of its image.
        label: [N] its class.
        score: [N] its score, 0 to 1; descending within a class and image.
        hit: [T, N] whether it matches a box, at each IoU threshold.
        ignored: [T, N] whether it lies in a crowd and does not count.
        boxes: [I, C] number of boxes of each image and class, without crowds.
    """

    image: NDArray[np.int64]
    label: NDArray[np.int64]
    score: NDArray[np.float64]
    hit: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    boxes: NDArray[np.int64]

    def of_class(self, label: int) -> Matches:
        """Return the detections and boxes of one class, highest score first; ties keep their order."""
        rows = np.flatnonzero(self.label == label)
        rows = rows[np.argsort(-self.score[rows], kind="stable")]
        return Matches(
            self.image[rows], self.label[rows], self.score[rows], self.hit[:, rows], self.ignored[:, rows],
            self.boxes[:, label : label + 1],
        )  # fmt: skip


def box_ious(
    found: NDArray[np.floating], boxes: NDArray[np.floating], crowd: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Return the IoU of each detection with each box, [K, N]; for crowds, the fraction of the detection that it covers.

    Args:
        found: [K, 4] xyxy.
        boxes: [N, 4] xyxy.
        crowd: [N] whether a box is a crowd.
    """
    a, b = (np.asarray(corners, dtype=np.float64).reshape(-1, 4) for corners in (found, boxes))
    # With widths and heights, like pycocotools, so that boxes at a threshold fall on the same side of it
    a_size, b_size = a[:, 2:] - a[:, :2], b[:, 2:] - b[:, :2]
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum((a[:, :2] + a_size)[:, None], (b[:, :2] + b_size)[None])
    shared = (high - low).clip(0).prod(-1)
    own = a_size.prod(-1)[:, None]
    union = own + b_size.prod(-1)[None] - shared
    if crowd is not None:
        union = np.where(crowd[None], own, union)
    ious: NDArray[np.float64] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return ious


def match(
    records: Sequence[ImageRecord],
    found: Found,
    classes: int,
    *,
    order: Sequence[int] | None = None,
    ious: NDArray[np.float64] = IOUS,
) -> Matches:
    """Match the detections of a split with its boxes.

    Args:
        records: the images and their boxes.
        found: detections by position in ``records``.
        classes: number of classes (C).
        order: positions in the order in which the metric visits the images, which breaks ties between scores; by default as
            in ``records``.
        ious: [T] IoU thresholds, ascending.
    """
    boxes = np.zeros((len(records), classes), np.int64)
    parts: list[tuple[int, int, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]] = []
    for position in range(len(records)) if order is None else order:
        record = records[position]
        solid = record.labels[~record.crowd]
        boxes[position] = np.bincount(solid, minlength=classes)[:classes]
        if position not in found:
            continue
        corners, scores, labels = found[position]
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            rows = rows[np.argsort(-scores[rows], kind="stable")][:MOST]
            same = record.labels == label
            hit, ignored = _match_one(corners[rows], record.boxes[same], record.crowd[same], ious)
            parts.append((position, int(label), scores[rows].astype(np.float64), hit, ignored))
    counts = [len(part[2]) for part in parts]
    none = np.zeros((len(ious), 0), bool)
    return Matches(
        np.repeat(np.array([part[0] for part in parts], np.int64), counts),
        np.repeat(np.array([part[1] for part in parts], np.int64), counts),
        np.concatenate([np.zeros(0), *(part[2] for part in parts)]),
        np.concatenate([none, *(part[3] for part in parts)], axis=1),
        np.concatenate([none, *(part[4] for part in parts)], axis=1),
        boxes,
    )


def _match_one(
    found: NDArray[np.float32], boxes: NDArray[np.float32], crowd: NDArray[np.bool_], ious: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Match the detections of one class in one image, best first; return what is hit and what is ignored, [T, K] each."""
    hit, ignored = np.zeros((2, len(ious), len(found)), bool)
    if not len(boxes) or not len(found):
        return hit, ignored
    least = np.minimum(ious, 1 - 1e-10)[:, None]  # [T, 1]
    solid = box_ious(found, boxes[~crowd])  # [K, G]
    swallowed = box_ious(found, boxes[crowd], np.ones(crowd.sum(), bool)).max(axis=1, initial=0.0)  # [K]
    free, every = np.ones((len(ious), solid.shape[1]), bool), np.arange(len(ious))
    for row in np.flatnonzero(solid.max(axis=1, initial=0.0) >= least[0, 0]):
        fits = free & (solid[row] >= least)  # [T, G]
        value = np.where(fits, solid[row], -1.0)[:, ::-1]  # on a tie the last box
        best = solid.shape[1] - 1 - value.argmax(axis=1)
        hit[:, row] = fits.any(axis=1)
        free[every[hit[:, row]], best[hit[:, row]]] = False
    ignored[:] = ~hit & (swallowed >= least)
    return hit, ignored


def per_class(matches: Matches) -> Iterator[tuple[int, Matches]]:
    """Yield each class that has boxes, with its matches."""
    for label in np.flatnonzero(matches.boxes.sum(axis=0)):
        yield int(label), matches.of_class(int(label))


def average_precision(matches: Matches, weights: NDArray[np.integer] | None = None) -> NDArray[np.float64]:
    """Return AP, averaged over classes and IoU thresholds, of the split or of samples of its images.

    Args:
        matches: from :func:`match`.
        weights: [R, I] how often each image is in a sample; by default, once.

    Returns:
        [R] float64, 0 to 1; NaN for a sample without a box.
    """
    if weights is None:
        weights = np.ones((1, len(matches.boxes)), np.int64)
    total, counted = np.zeros(len(weights)), np.zeros(len(weights))
    for _, own in per_class(matches):
        boxes = (weights @ own.boxes)[:, 0]  # [R]
        step = max(1, CHUNK // max(1, len(own.score)))
        for start in range(0, len(weights), step):
            part = slice(start, start + step)
            times = weights[part][:, own.image].astype(np.float32)  # [r, N]
            for hit, ignored in zip(own.hit, own.ignored, strict=True):
                total[part] += _areas(times, hit, ignored, boxes[part])
        counted += len(own.hit) * (boxes > 0)
    mean: NDArray[np.float64] = np.divide(total, counted, out=np.full(len(weights), np.nan), where=counted > 0)
    return mean


def _areas(
    times: NDArray[np.float32], hit: NDArray[np.bool_], ignored: NDArray[np.bool_], boxes: NDArray[np.int64]
) -> NDArray[np.float64]:
    """AP [R] of one class at one IoU: monotone precision at 101 recalls; ``times`` [R, N] are the detections' weights."""
    result = np.zeros(len(times))
    if not hit.any():
        return result
    # Precision peaks at hits, so the others only count by how many precede a hit
    places = np.flatnonzero(hit)
    hits = np.cumsum(times[:, places], axis=1, dtype=np.float64)  # [R, H]
    false = np.cumsum(times * ~(hit | ignored), axis=1, dtype=np.float64)[:, places]
    precision = hits / np.maximum(hits + false, np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    for row in np.flatnonzero(boxes > 0):
        index = np.searchsorted(hits[row] / boxes[row], RECALLS, side="left")
        result[row] = precision[row][index[index < len(places)]].sum() / len(RECALLS)
    return result
