"""A confidence threshold with a bound on what it misses: conformal risk control with the image as the unit.

Angelopoulos, Bates, Fisch, Lei and Schuster, "Conformal Risk Control", arXiv 2208.02814, section 2. The loss of an image is
the share of its objects that no detection from the threshold on finds. It lies between 0 and B = 1 and cannot fall when the
threshold rises: a detection is matched before those with lower scores, so that leaving these out changes nothing for it. Of
n calibration images with mean loss R(t), the highest threshold t with ``n / (n + 1) R(t) + B / (n + 1) <= alpha`` has an
expected loss of at most alpha on a further image that is exchangeable with them.

Images without objects have no such share and are left out: as zeros they would only make the promise weaker for the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nextdetr.report.matching import Matches

__all__ = ["Objects", "Threshold", "control_risk", "found_objects"]

#: Threshold by threshold, bounds are sums in floating point: those that are equal but for rounding count as equal.
ROUNDING = 1e-9
#: Digits of a threshold, which is rounded down: what passes the threshold of all digits passes this one, too.
DIGITS = 6


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects of the images that have any, and with which score each was found.

    Attributes:
        count: [I] objects of each image, at least 1.
        image: [H] position in ``count`` of the image of each object that was found.
        score: [H] score of the detection that found it, 0 to 1.
        positions: [I] position of each image in the split.
    """

    count: NDArray[np.int64]
    image: NDArray[np.int64]
    score: NDArray[np.float64]
    positions: NDArray[np.int64]

    def take(self, images: NDArray[np.int64]) -> Objects:
        """Return the objects of some of the images, by their positions in ``count``."""
        place = np.full(len(self.count), -1)
        place[images] = np.arange(len(images))
        kept = place[self.image] >= 0
        return Objects(self.count[images], place[self.image[kept]], self.score[kept], self.positions[images])

    def missed(self, threshold: float) -> NDArray[np.float64]:
        """Return the share of missed objects of each image, [I], where detections of at least ``threshold`` count."""
        hits = np.bincount(self.image[self.score >= threshold], minlength=len(self.count))
        share: NDArray[np.float64] = 1 - hits / self.count
        return share


def found_objects(matches: Matches, row: int = 0) -> Objects:
    """Return which objects were found.

    Args:
        matches: of the detections of a split, with all scores.
        row: which of its IoU thresholds counts.
    """
    total = matches.boxes.sum(axis=1)
    positions = np.flatnonzero(total)
    place = np.full(len(total), -1)
    place[positions] = np.arange(len(positions))
    hits = matches.hit[row]
    return Objects(total[positions], place[matches.image[hits]], matches.score[hits], positions)


@dataclass(frozen=True, slots=True)
class Threshold:
    """What risk control gives.

    Attributes:
        threshold: from which confidence on a detection counts, 0 to 1; None where even all detections miss too much.
        missed: mean share of missed objects of the calibration images there, and with all detections where there is none.
        bound: on the expected share of a further image: ``n / (n + 1) missed + 1 / (n + 1)``.
        highest_recall: the most that could be asked for: 1 less the bound where all detections count.
        images: calibration images (n).
    """

    threshold: float | None
    missed: float
    bound: float
    highest_recall: float
    images: int


def control_risk(objects: Objects, recall: float) -> Threshold:
    """Return the highest threshold whose expected share of missed objects is bounded by 1 - ``recall``.

    Args:
        objects: of the calibration images, at least one.
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
