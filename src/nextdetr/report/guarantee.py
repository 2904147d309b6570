"""A confidence threshold with a bound on missed objects: conformal risk control with the image as the unit.

Angelopoulos, Bates, Fisch, Lei and Schuster, "Conformal Risk Control", arXiv 2208.02814, section 2. The loss of an image is
the fraction of its objects that no detection above the threshold finds. It lies between 0 and B = 1 and cannot fall when
the threshold rises: a detection is matched before those with lower scores, so dropping these does not affect it. Of n
calibration images with mean loss R(t), the highest threshold t with ``n / (n + 1) R(t) + B / (n + 1) <= alpha`` has an
expected loss of at most alpha on another image that is exchangeable with them.

Images without objects have no such fraction and are left out: as zeros they would weaken the promise for the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nextdetr.report.matching import Matches

__all__ = ["Objects", "Threshold", "control_risk", "found_objects"]

#: Bounds are floating-point sums: those that are equal up to rounding count as equal.
ROUNDING = 1e-9
#: Digits of a threshold, which is rounded down: detections above the exact threshold are also above this one.
DIGITS = 6


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects of images that have any, and the score with which each was found.

    Attributes:
        count: [I] objects of each image, at least 1.
        image: [H] position in ``count`` of each found object's image.
        score: [H] score of the detection that found it, 0 to 1.
        positions: [I] position of each image in the split.
    """

    count: NDArray[np.int64]
    image: NDArray[np.int64]
    score: NDArray[np.float64]
    positions: NDArray[np.int64]

    def take(self, images: NDArray[np.int64]) -> Objects:
        """Return the objects of some images, by their positions in ``count``."""
        place = np.full(len(self.count), -1)
        place[images] = np.arange(len(images))
        kept = place[self.image] >= 0
        return Objects(self.count[images], place[self.image[kept]], self.score[kept], self.positions[images])

    def missed(self, threshold: float) -> NDArray[np.float64]:
        """Return the fraction of missed objects of each image, [I], for detections of at least ``threshold``."""
        hits = np.bincount(self.image[self.score >= threshold], minlength=len(self.count))
        share: NDArray[np.float64] = 1 - hits / self.count
        return share


def found_objects(matches: Matches, row: int = 0) -> Objects:
    """Return which objects were found.

    Args:
        matches: matches of the detections on a split, with all scores.
        row: index of the IoU threshold to use.
    """
    total = matches.boxes.sum(axis=1)
    positions = np.flatnonzero(total)
    place = np.full(len(total), -1)
    place[positions] = np.arange(len(positions))
    hits = matches.hit[row]
    return Objects(total[positions], place[matches.image[hits]], matches.score[hits], positions)


@dataclass(frozen=True, slots=True)
class Threshold:
    """Result of risk control.

    Attributes:
        threshold: least confidence of detections, 0 to 1; None if even all detections miss too much.
        missed: mean fraction of missed objects of the calibration images there, or with all detections if there is none.
        bound: on the expected fraction for another image: ``n / (n + 1) missed + 1 / (n + 1)``.
        highest_recall: the highest recall that could be requested: 1 minus the bound with all detections.
        images: calibration images (n).
    """

    threshold: float | None
    missed: float
    bound: float
    highest_recall: float
    images: int


def control_risk(objects: Objects, recall: float) -> Threshold:
    """Return the highest threshold whose expected fraction of missed objects is bounded by 1 - ``recall``.

    Args:
        objects: objects of at least one calibration image.
        recall: 0 to 1, both excluded.
    """
    images = len(objects.count)
    order = np.argsort(-objects.score, kind="stable")
    score = objects.score[order]
    found = np.cumsum(1 / objects.count[objects.image[order]]) / images
    last = np.flatnonzero(np.append(score[1:] != score[:-1], True)) if len(score) else np.zeros(0, np.int64)
    missed = 1 - found[last]  # with a threshold of score[last]
    least = float(missed[-1]) if len(last) else 1.0
    highest = 1 - float(_bound(least, images))
    good = np.flatnonzero(_bound(missed, images) <= 1 - recall + ROUNDING)
    if not len(good):
        return Threshold(None, max(0.0, least), 1 - highest, max(0.0, highest), images)
    threshold = math.floor(float(score[last[good[0]]]) * 10**DIGITS) / 10**DIGITS
    there = float(objects.missed(threshold).mean())
    return Threshold(threshold, there, float(_bound(there, images)), highest, images)


def _bound(missed: float | NDArray[np.float64], images: int) -> NDArray[np.float64]:
    bound: NDArray[np.float64] = (images * np.asarray(missed) + 1) / (images + 1)
    return bound
