"""The confidence with the best F1 of each class, and the curves over confidence behind it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nextdetr.confidence import Thresholds
from nextdetr.report.matching import Matches

__all__ = ["GRID", "Curves", "best_thresholds", "curves"]

#: Confidences at which precision, recall and F1 are computed.
GRID = np.arange(1, 200) / 200
#: Each class is treated as if it had this many more boxes, found as those of all classes are. With few boxes its curve is a
#: staircase whose highest step is chance; with hundreds this changes nothing.
BORROWED = 10.0
#: F1 is averaged over confidences within this distance, so that a plateau beats a peak.
REACH = 0.02


@dataclass(frozen=True, slots=True)
class Curves:
    """Precision, recall and F1 of the classes over ``GRID``, at IoU 0.5; NaN where undefined.

    Attributes:
        precision: [C, G].
        recall: [C, G].
        f1: [C, G].
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]


def curves(matches: Matches) -> Curves:
    """Return precision, recall and F1 of each class over the confidence."""
    hits, false, boxes = _counts(matches)
    with np.errstate(invalid="ignore", divide="ignore"):
        return Curves(hits / (hits + false), hits / boxes[:, None], 2 * hits / (hits + false + boxes[:, None]))


def best_thresholds(matches: Matches) -> Thresholds:
    """Return the confidence with the best F1 at IoU 0.5 of each class, and that F1.

    Returns:
        C values of ``GRID``; classes without boxes get the best one of all classes; empty if no box was found.
    """
    hits, false, boxes = _counts(matches)
    total = boxes.sum()
    if not total or not hits.any():
        return Thresholds()
    share = BORROWED / total
    hits, false, boxes = hits + share * hits.sum(0), false + share * false.sum(0), boxes + share * total
    f1 = 2 * hits / (hits + false + boxes[:, None])
    reach = round(REACH / (GRID[1] - GRID[0]))
    window = np.ones(2 * reach + 1) / (2 * reach + 1)
    smooth = np.stack([np.convolve(np.pad(row, reach, mode="edge"), window, mode="valid") for row in f1])
    # On a tie the middle: the threshold is as far from both sides of a gap as possible
    highest = smooth.max(1)
    best = np.isclose(smooth, highest[:, None], rtol=1e-9, atol=0)
    return Thresholds([float(GRID[int(np.median(np.flatnonzero(row)))]) for row in best], highest.tolist())


def _counts(matches: Matches) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Hits and false detections [C, G] above each confidence, and boxes [C]."""
    classes = matches.boxes.shape[1]
    counted = ~matches.ignored[0]
    places = np.searchsorted(GRID, matches.score, side="right")  # number of the confidences that a detection reaches
    tables = []
    for chosen in (matches.hit[0] & counted, ~matches.hit[0] & counted):
        table = np.zeros((classes, len(GRID) + 1))
        np.add.at(table, (matches.label[chosen], places[chosen]), 1.0)
        tables.append(table[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:])
    return tables[0], tables[1], matches.boxes.sum(axis=0).astype(np.float64)
