"""Interval of a difference in AP: both detectors on the same resamples of the images (Efron and Tibshirani, 1993)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nextdetr.report.matching import Matches, average_precision

__all__ = ["Difference", "enough_images", "paired_difference"]

STEP = 50  # resamples per progress report


@dataclass(frozen=True, slots=True)
class Difference:
    """AP of one detector minus that of another, with a bootstrap interval.

    Attributes:
        value: on the original images; NaN if neither has a box.
        low: lower end of the interval.
        high: upper end.
        positive: fraction of the resamples in which it is above 0.
    """

    value: float
    low: float
    high: float
    positive: float


def enough_images(images: int, level: float) -> bool:
    """Whether an interval from this many images can exclude 0 rightly.

    Percentiles of resamples say too little of a handful of images: those of a single one have no width at all. Even if all
    images favour the same detector, chance alone does that with a probability of 2 / 2^n (the sign test), which has to be
    at most 1 - ``level``: with 0.95, from six images.
    """
    return 0.5 ** (images - 1) <= 1 - level


def paired_difference(
    first: Matches,
    second: Matches,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Difference:
    """Compare two detectors on the same images: ``second`` minus ``first``.

    Each resample draws as many images as there are, with replacement, the same for both; the interval is given by
    percentiles. It shows how the difference varies between similar sets of images, not between trainings.

    Args:
        first: matches of one detector.
        second: matches of the other one, on the same images in the same order.
        resamples: number of resamples.
        level: fraction of them within the interval.
        seed: seed of the resamples.
        progress: called with (resamples done, resamples to do).
    """
    images = len(first.boxes)
    assert len(second.boxes) == images
    value = float((average_precision(second) - average_precision(first))[0])
    generator, parts = np.random.default_rng(seed), []
    for start in range(0, resamples, STEP):
        picks = generator.integers(0, max(1, images), (min(STEP, resamples - start), images))
        weights = np.stack([np.bincount(pick, minlength=images) for pick in picks])
        parts.append(average_precision(second, weights) - average_precision(first, weights))
        if progress is not None:
            progress(min(resamples, start + STEP), resamples)
    found = np.concatenate(parts)
    found = found[~np.isnan(found)]
    if not len(found):
        return Difference(value, value, value, 0.0)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Difference(value, float(low), float(high), float((found > 0).mean()))
