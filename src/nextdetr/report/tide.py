"""Cost of each kind of error in AP: TIDE (Bolya et al., arXiv 2008.08115, section 2), equal to its authors' ``tidecv``.

Each false detection has one kind, by its IoU with the boxes of its own class and of others; a box that no false detection
could have found is missed. The cost of a kind is the gain in AP at IoU 0.5 if its errors alone are fixed: a detection that
could have been correct becomes so if its box has none yet, and is removed otherwise; a missed box is removed. As in the
original, the 100 best detections per image count, and a class with detections but no box has an AP of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nextdetr.data.records import ImageRecord
from nextdetr.report.matching import Found, box_ious

__all__ = ["KINDS", "Tide", "tide"]

#: Kinds of error, in the order in which they are tested for a false detection.
KINDS = ("class", "location", "both", "duplicate", "background", "missed")
CLASS, LOCATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(6)
RIGHT, NOTHING = 0.5, 0.1  # IoU from which a detection is correct, and below which it is unrelated to a box
MOST = 100  # detections per image


@dataclass(frozen=True, slots=True)
class Tide:
    """The errors of a detector by kind.

    Attributes:
        ap50: AP at IoU 0.5 as TIDE computes it, a fraction.
        counts: number of errors of each kind.
        costs: AP (a fraction) that would be gained without the errors of each kind; they do not add up to the total.
        false_positives: gain without any false detection.
        false_negatives: gain without any missed box.
    """

    ap50: float
    counts: dict[str, int]
    costs: dict[str, float]
    false_positives: float
    false_negatives: float


@dataclass(slots=True)
class _Ledger:
    """Detections and errors of all images, in order; boxes are numbered consecutively."""

    right: list[tuple[int, float]] = field(default_factory=list)  # class, score
    points: list[tuple[int, float, bool]] = field(default_factory=list)  # right and wrong, in order
    errors: list[tuple[int, int, float, bool, int]] = field(default_factory=list)  # kind, class, score, counts, box
    classes: list[int] = field(default_factory=list)  # of the boxes
    used: list[bool] = field(default_factory=list)  # whether a detection has found the box
    best: dict[int, tuple[float, int]] = field(default_factory=dict)  # box -> score and error that may become right

    def blame(self, kind: int, label: int, score: float, counts: bool, box: int = -1) -> None:
        """Add an error; of those that could have found the same box, the one with the highest score is fixed."""
        if kind in (CLASS, LOCATION) and not self.used[box] and score > self.best.get(box, (-1.0, 0))[0]:
            self.best[box] = (score, len(self.errors))
        self.errors.append((kind, label, score, counts, box))


def tide(records: Sequence[ImageRecord], found: Found, classes: int) -> Tide:
    """Classify the errors of a detector by kind.

    Args:
        records: the images and their boxes.
        found: detections by position in ``records``.
        classes: number of classes.
    """
    ledger = _Ledger()
    for position, record in enumerate(records):
        _add_image(ledger, record, *found.get(position, (np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))))
    boxes = np.bincount(np.array(ledger.classes, np.int64), minlength=classes)
    ap50 = _mean_ap(ledger.points, boxes)
    gains = [_mean_ap(*_without(ledger, kind, boxes)) - ap50 for kind in range(len(KINDS))]
    kinds = [error[0] for error in ledger.errors]
    never = [(label, score, False) for _, label, score, counts, _ in ledger.errors if counts]
    clean = [(label, 0.0, False) for label, _, _ in never] + [(label, 1.0, True) for label, _ in ledger.right]
    missed = np.bincount(
        np.array([c for c, used in zip(ledger.classes, ledger.used, strict=True) if not used], np.int64), minlength=classes
    )
    return Tide(
        ap50,
        {name: kinds.count(kind) for kind, name in enumerate(KINDS)},
        {name: max(0.0, gain) for name, gain in zip(KINDS, gains, strict=True)},
        _mean_ap(clean, boxes) - ap50,
        _mean_ap(never + [(label, score, True) for label, score in ledger.right], boxes - missed) - ap50,
    )


def _add_image(
    ledger: _Ledger,
    record: ImageRecord,
    corners: NDArray[np.floating],
    scores: NDArray[np.floating],
    labels: NDArray[np.int64],
) -> None:
    """Match the detections of an image with its boxes, and classify the wrong ones."""
    order = np.argsort(-scores, kind="stable")[:MOST]
    corners, scores, labels = corners[order], scores[order].astype(np.float64), labels[order]
    truth, solid = record.boxes[~record.crowd], record.labels[~record.crowd]
    ious = box_ious(corners, truth)  # [K, G]
    same = labels[:, None] == solid[None]
    finder = np.full(len(truth), -1)  # detection that has found the box
    right = np.zeros(len(order), bool)
    own = ious * same
    left = own.copy()
    for row in np.flatnonzero(own.max(axis=1, initial=0.0) >= RIGHT).tolist():
        box = int(left[row].argmax())
        if left[row, box] >= RIGHT:
            finder[box], right[row], left[:, box] = row, True, 0.0
    first = len(ledger.classes)
    ledger.classes += solid.tolist()
    ledger.used += (finder >= 0).tolist()
    ignored = ~right & _in_crowd(record, corners, labels)
    for row in range(len(scores)):
        label, score = int(labels[row]), float(scores[row])
        if not ignored[row]:
            ledger.points.append((label, score, bool(right[row])))
        if right[row]:
            ledger.right.append((label, score))
            continue
        kind, box = _kind(ious[row], same[row], finder >= 0)
        ledger.blame(kind, label, score, not ignored[row], first + box)
    for box in range(first, len(ledger.classes)):
        if not ledger.used[box] and box not in ledger.best:
            ledger.errors.append((MISSED, ledger.classes[box], 0.0, False, box))


def _in_crowd(record: ImageRecord, corners: NDArray[np.floating], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    crowd = record.crowd
    covered = box_ious(corners, record.boxes[crowd], np.ones(crowd.sum(), bool)) > RIGHT
    return np.asarray((covered & (labels[:, None] == record.labels[crowd][None])).any(axis=1))


def _kind(ious: NDArray[np.float64], same: NDArray[np.bool_], used: NDArray[np.bool_]) -> tuple[int, int]:
    """Return the kind of a false detection and its box, from its IoU [G] with the boxes."""
    if not len(ious):
        return BACKGROUND, 0
    own, other = ious * same, ious * ~same
    if NOTHING <= own.max() <= RIGHT:
        return LOCATION, int(own.argmax())
    if other.max() >= RIGHT:
        return CLASS, int(other.argmax())
    if (own * used).max() >= RIGHT:
        return DUPLICATE, int((own * used).argmax())
    return (BACKGROUND if ious.max() <= NOTHING else BOTH), 0


def _without(
    ledger: _Ledger, kind: int, boxes: NDArray[np.int64]
) -> tuple[list[tuple[int, float, bool]], NDArray[np.int64]]:
    """Detections and number of boxes by class, with the errors of one kind fixed."""
    points, boxes = [], boxes.copy()
    for number, (own, label, score, counts, box) in enumerate(ledger.errors):
        if own != kind:
            if counts:
                points.append((label, score, False))
        elif kind == MISSED:
            boxes[label] -= 1
        elif kind in (CLASS, LOCATION) and ledger.best.get(box, (0.0, -1))[1] == number:
            points.append((ledger.classes[box], score, True))
    return points + [(label, score, True) for label, score in ledger.right], boxes


def _mean_ap(points: Sequence[tuple[int, float, bool]], boxes: NDArray[np.int64]) -> float:
    """Mean AP of the classes that have a detection or a box."""
    labels = np.array([point[0] for point in points], np.int64)
    scores = np.array([point[1] for point in points], np.float64)
    right = np.array([point[2] for point in points], bool)
    values = []
    for label in np.union1d(np.unique(labels), np.flatnonzero(boxes)):
        rows = np.flatnonzero(labels == label)
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        values.append(_ap(right[rows], int(boxes[label])))
    return float(np.mean(values)) if values else 0.0


def _ap(right: NDArray[np.bool_], boxes: int) -> float:
    if boxes == 0 or not len(right):
        return 0.0
    hits = np.cumsum(right)
    precision = np.maximum.accumulate((hits / np.arange(1, len(right) + 1))[::-1])[::-1]
    index = np.searchsorted(hits / boxes, np.arange(101) / 100, side="left")
    return float(precision[index[index < len(right)]].sum() / 101)
