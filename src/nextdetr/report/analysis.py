"""All numbers of a report, computed from the detections on one split; no page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextdetr.confidence import Thresholds, least_scores
from nextdetr.data.records import DetectionData
from nextdetr.report.calibration import Calibration, calibrate_bins
from nextdetr.report.confusion import Pairs, confusion_matrix, cost, pair
from nextdetr.report.matching import Found, match
from nextdetr.report.thresholds import Curves, best_thresholds, curves
from nextdetr.report.tide import Tide, tide

__all__ = ["Analysis", "analyse"]


@dataclass(frozen=True, slots=True)
class Analysis:
    """Analysis of the detections on a split.

    Attributes:
        data: the split.
        metrics: the twelve COCO metrics, as in ``val``.
        per_class: by class name, ``AP``, ``AP50`` and ``boxes`` as in ``val``, and ``AP_small``, ``AP_medium`` and
            ``AP_large``; fractions, None if undefined.
        precision: [R, C] precision at IoU 0.5 and 101 recalls; NaN if undefined.
        curves: over confidence.
        thresholds: confidence with the best F1 of each class on this split; empty if nothing was found.
        least: [C] least confidence of detections in what follows: the detector's own thresholds if it has any, else
            those of ``thresholds`` that are usable, else the default.
        confusion: [C + 1, C + 1] true class by predicted class; the last of each is background.
        pairs: matched boxes and detections of each image.
        tide: kinds of error.
        calibration: the reliability diagram.
        empty: positions of the images without objects.
    """

    data: DetectionData
    metrics: dict[str, float | None]
    per_class: dict[str, dict[str, Any]]
    precision: NDArray[np.float64]
    curves: Curves
    thresholds: Thresholds
    least: NDArray[np.float32]
    confusion: NDArray[np.int64]
    pairs: list[Pairs]
    tide: Tide
    calibration: Calibration
    empty: list[int]

    def false_positives(self) -> list[int]:
        """Return the number of detections in each image of ``empty``."""
        return [len(self.pairs[place].labels) for place in self.empty]

    def worst(self, most: int) -> list[int]:
        """Return the positions of the images with the most errors, worst first; empty without errors."""
        costs = np.array([cost(image) for image in self.pairs])
        order = np.argsort(-costs, kind="stable")[:most]
        return [int(place) for place in order if costs[place] > 0]

    def to_json(self) -> dict[str, Any]:
        """Return the numbers for the JSON result."""
        classes, false = self.data.classes, self.false_positives()
        return {
            "metrics": self.metrics,
            "per_class": self.per_class,
            "thresholds": dict(zip(classes, self.thresholds.values, strict=False)),
            "confidence": {name: round(float(value), 4) for name, value in zip(classes, self.least, strict=True)},
            "errors": {name: {"count": self.tide.counts[name], "cost": self.tide.costs[name]} for name in self.tide.counts},
            "calibration_error": self.calibration.ece,
            "confusion": {"classes": [*classes, "background"], "counts": self.confusion.tolist()},
            "without_objects": {"images": len(self.empty), "false_positives": sum(false)},
        }


def analyse(
    data: DetectionData,
    found: Found,
    metrics: dict[str, float | None],
    per_class: dict[str, dict[str, Any]],
    precision: NDArray[np.float64] | None,
    *,
    own: Sequence[float] | None = None,
    order: Sequence[int] | None = None,
) -> Analysis:
    """Analyse the detections on a split.

    Args:
        data: the split.
        found: detections by position in ``data.records``.
        metrics: the twelve COCO metrics.
        per_class: ``AP``, ``AP50`` and ``boxes`` of each class.
        precision: [T, R, C, A, M] from the evaluator: IoU thresholds, recalls, classes, sizes (all, small, medium, large),
            limits on detections; -1 if undefined. None if nothing could be scored.
        own: the detector's own thresholds.
        order: see :func:`nextdetr.report.matching.match`.
    """
    records, classes = data.records, len(data.classes)
    matches = match(records, found, classes, order=order)
    thresholds = best_thresholds(matches)
    least = least_scores("auto", own if own is not None else thresholds.usable() or None, classes)
    pairs = list(pair(records, found, least))
    sizes = {"AP_small": 1, "AP_medium": 2, "AP_large": 3}
    table = {
        name: {**row, **{size: _mean(precision, index, area) for size, area in sizes.items()}}
        for index, (name, row) in enumerate(per_class.items())
    }
    flat = np.full((101, classes), np.nan) if precision is None else precision[0, :, :, 0, -1]
    return Analysis(
        data, metrics, table, np.where(flat < 0, np.nan, flat), curves(matches), thresholds, least,
        confusion_matrix(pairs, classes), pairs, tide(records, found, classes), calibrate_bins(matches),
        [place for place, record in enumerate(records) if not len(record.boxes)],
    )  # fmt: skip


def _mean(precision: NDArray[np.float64] | None, label: int, area: int) -> float | None:
    if precision is None:
        return None
    values = precision[:, :, label, area, -1]
    return float(values[values > -1].mean()) if (values > -1).any() else None
