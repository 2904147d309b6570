"""Confusion between classes at the operating confidence, as a matrix and for each image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nextdetr.data.records import ImageRecord
from nextdetr.report.matching import Found, box_ious

__all__ = ["Pairs", "confusion_matrix", "cost", "pair"]

RIGHT = 0.5  # IoU from which a detection matches a box


@dataclass(frozen=True, slots=True)
class Pairs:
    """Boxes and detections of one image, with their matches.

    Attributes:
        truth: [G, 4] boxes xyxy in pixels, without crowds.
        truth_labels: [G].
        found: [K, 4] detections above the threshold of their class, without those in crowds.
        scores: [K].
        labels: [K].
        box_of: [K] number of the matched box; -1 if there is none (a false positive).
    """

    truth: NDArray[np.float32]
    truth_labels: NDArray[np.int64]
    found: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    box_of: NDArray[np.int64]

    @property
    def right(self) -> NDArray[np.bool_]:
        """[K] whether a detection matches a box of its class."""
        right = self.box_of >= 0
        right[right] = self.truth_labels[self.box_of[right]] == self.labels[right]
        return right

    @property
    def missed(self) -> NDArray[np.bool_]:
        """[G] whether no detection matches the box, with the right class or a wrong one."""
        return ~np.isin(np.arange(len(self.truth)), self.box_of)


def pair(
    records: Sequence[ImageRecord], found: Found, least: NDArray[np.floating], *, iou: float = RIGHT
) -> Iterator[Pairs]:
    """Yield for each image which detections match which boxes, whatever their classes.

    Pairs of the same class come first, then higher IoU; each box and detection is in at most one pair.

    Args:
        records: the images and their boxes.
        found: detections by position in ``records``.
        least: [C] least confidence of each class.
        iou: least IoU of a pair.
    """
    nothing = (np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    for position, record in enumerate(records):
        corners, scores, labels = found.get(position, nothing)
        kept = scores >= least[labels]
        corners, scores, labels = corners[kept], scores[kept], labels[kept]
        truth, truth_labels = record.boxes[~record.crowd], record.labels[~record.crowd]
        ious = box_ious(corners, truth)
        same = labels[:, None] == truth_labels[None]
        rows, columns = np.nonzero(ious >= iou)
        order = np.lexsort((-ious[rows, columns], ~same[rows, columns]))
        box_of, free = np.full(len(labels), -1), np.ones(len(truth), bool)
        for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
            if box_of[row] < 0 and free[column]:
                box_of[row], free[column] = column, False
        covered = box_ious(corners, record.boxes[record.crowd], np.ones(record.crowd.sum(), bool)) >= iou
        in_crowd = (covered & (labels[:, None] == record.labels[record.crowd][None])).any(axis=1) & (box_of < 0)
        kept = ~in_crowd
        yield Pairs(truth, truth_labels, corners[kept], scores[kept], labels[kept], box_of[kept])


def confusion_matrix(pairs: Sequence[Pairs], classes: int) -> NDArray[np.int64]:
    """Return [C + 1, C + 1] counts, rows true and columns predicted classes; the last are background."""
    matrix = np.zeros((classes + 1, classes + 1), np.int64)
    for image in pairs:
        of_box = image.box_of >= 0
        true = np.full(len(image.labels), classes)
        true[of_box] = image.truth_labels[image.box_of[of_box]]
        np.add.at(matrix, (true, image.labels), 1)
        matrix[:, classes] += np.bincount(image.truth_labels[image.missed], minlength=classes + 1)
    return matrix


def cost(image: Pairs) -> float:
    """Return the cost of an image's errors: 1 per missed box, the confidence of each false or misclassified detection."""
    return float(image.missed.sum() + image.scores[~image.right].sum())
