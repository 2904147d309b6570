"""Boxes from a detector rather than a person: labels may have a confidence, as written by ``predict --save``.

Every box is used unless the data set's YAML or the caller sets a minimum confidence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nextdetr.data.raw import RawSplit, plural
from nextdetr.data.records import Problem
from nextdetr.errors import DataError

__all__ = ["CONFIDENCE_KIND", "least_confidence", "sift"]

CONFIDENCE_KIND = "confidence in labels"


def least_confidence(content: Mapping[str, Any], source: Path) -> float:
    """Return ``min_confidence`` of a YAML, 0 to 1; 0 if it is missing.

    Raises:
        DataError: not a number from 0 to 1.
    """
    value = content.get("min_confidence")
    try:
        least = 0.0 if value is None else float(value)
    except (TypeError, ValueError):
        least = -1.0
    if not 0 <= least <= 1:
        raise DataError(f"{source}: min_confidence is {value}; it must be a number from 0 to 1.")
    return least


def sift(raw: RawSplit, least: float) -> RawSplit:
    """Drop boxes with a low confidence, and report how many boxes have one.

    Boxes without a confidence are kept. Returns the split itself if none has one.
    """
    if raw.confidence is None:
        return raw
    known = np.flatnonzero(np.isfinite(raw.confidence))
    values = raw.confidence[known]
    if (values == 1).all():  # none, or the value that some tools write for boxes drawn by hand
        return replace(raw, confidence=None)
    keep = np.flatnonzero(~(raw.confidence < least))
    dropped = len(raw.confidence) - len(keep)
    fate = f"the {dropped:,} below {least:g} are left out" if dropped else "all are used"
    fate += "" if least else "; min_confidence sets a limit"
    message = (
        f"{len(known):,} of {plural(len(raw.confidence), 'box')} have a confidence ({values.min():.2g} to "
        f"{values.max():.2g}), as a detector's own have; {fate}"
    )
    place, where = raw.where(int(known[0])), raw.where
    return replace(
        raw,
        box_image=raw.box_image[keep], boxes=raw.boxes[keep], labels=raw.labels[keep], crowd=raw.crowd[keep],
        areas=raw.areas[keep], confidence=raw.confidence[keep], where=lambda row: where(int(keep[row])),
        problems=[*raw.problems, Problem(*place, message, CONFIDENCE_KIND)],
    )  # fmt: skip
