"""Repeat factors: images of rare classes are shown more often (LVIS, arXiv 1908.03195, section 5.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nextdetr.data.records import ImageRecord

__all__ = ["repeat_factors"]


def repeat_factors(records: Sequence[ImageRecord], classes: int) -> NDArray[np.float64]:
    """How often to show each image, relative to one of only the most frequent class.

    The factor of a class is the square root of the most frequent class's number of images over its own; an image has the
    largest factor of its classes, or 1 without any. In the paper the numerator is a constant, chosen for 1,203 classes.

    Args:
        records: N images; crowds do not count.
        classes: number of classes.

    Returns:
        [N], at least 1.
    """
    present = np.zeros((len(records), classes), dtype=bool)
    for row, record in zip(present, records, strict=True):
        row[np.asarray(record.labels)[~np.asarray(record.crowd, dtype=bool)]] = True
    images = present.sum(axis=0)
    factors = np.sqrt(images.max(initial=1) / np.maximum(images, 1))
    largest: NDArray[np.float64] = np.where(present, factors, 1.0).max(axis=1, initial=1.0)
    return largest
