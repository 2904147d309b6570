"""Calibration: of detections with a confidence of 0.8, eight in ten should be correct."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nextdetr.report.matching import Matches

__all__ = ["BINS", "LEAST", "Calibration", "calibrate_bins"]

BINS = 10
#: Detections below are ignored: there are hundreds per image, and they would dominate the mean.
LEAST = 0.05


@dataclass(frozen=True, slots=True)
class Calibration:
    """The reliability diagram.

    Attributes:
        edges: [B + 1] bounds of the bins of confidence.
        counts: [B] detections in each.
        confidence: [B] their mean confidence; NaN for an empty bin.
        precision: [B] fraction of them that is correct at IoU 0.5; NaN for an empty bin.
        ece: expected calibration error, the mean difference of the two over all detections; None without any.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    precision: NDArray[np.float64]
    ece: float | None


def calibrate_bins(matches: Matches) -> Calibration:
    """Compare confidence with precision, in bins of equal width (Guo et al., arXiv 1706.04599, section 2)."""
    counted = ~matches.ignored[0] & (matches.score >= LEAST)
    scores, right = matches.score[counted], matches.hit[0][counted]
    edges = np.linspace(0.0, 1.0, BINS + 1)
    place = np.clip(np.digitize(scores, edges) - 1, 0, BINS - 1)
    counts = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore", divide="ignore"):
        confidence = np.bincount(place, scores, minlength=BINS) / counts
        precision = np.bincount(place, right.astype(np.float64), minlength=BINS) / counts
    filled = counts > 0
    ece = None
    if filled.any():
        ece = float((np.abs(confidence - precision)[filled] * counts[filled]).sum() / counts.sum())
    return Calibration(edges, counts, confidence, precision, ece)
