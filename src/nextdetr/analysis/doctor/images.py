"""Image files that cannot be used, or that show almost nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nextdetr.analysis.doctor.findings import Finding, Parts, Picture, Severity, some
from nextdetr.data.raw import plural
from nextdetr.data.records import DetectionData, ImageRecord, Problem
from nextdetr.data.split import count_aside

__all__ = ["odd_images", "reading_problems", "split_sizes"]

_NOTES = (
    "box partly outside image", "box given twice", "image listed twice", "path of another computer", "parts of one object",
)  # fmt: skip
_HALF = 0.5  # of the images of a split that cannot be used
_SMALL_SIDE = 32  # pixels
_LONG = 5.0  # aspect ratio
_EMPTY = 2.0  # levels of 255: least variation of an image with content
_FEW = 50  # images to train on
_FEW_TO_SCORE = 20


def reading_problems(parts: Parts) -> list[Finding]:
    """Summarise what the readers dropped, changed or doubted, by kind; see ``data.check``."""
    by_kind: dict[str, dict[Problem, str]] = defaultdict(dict)
    for split, data in parts.items():
        for problem in data.problems:
            by_kind[problem.kind].setdefault(problem, split)  # some concern the whole set, and are in every split
    findings = []
    for kind, found in by_kind.items():
        (first, split), *_ = found.items()
        place = ": ".join(part for part in (first.file, first.where, first.message) if part)
        severity: Severity = "note" if kind in _NOTES else "warning"
        files = list(dict.fromkeys(problem.file for problem in found))
        details = [
            {"split": split, "file": problem.file, "where": problem.where, "message": problem.message}
            for problem, split in found.items()
        ]
        findings.append(
            Finding(kind, severity, f"{plural(len(found), 'time')}, such as in {split}: {place}.", files, details)
        )
    for split, data in parts.items():
        lost = [problem.file for problem in data.problems if "the image is dropped" in problem.message]
        if len(lost) > _HALF * (len(lost) + len(data.records)):
            message = (
                f"{len(lost):,} of the {plural(len(lost) + len(data.records), 'image')} of {split} cannot be used: is the "
                "data set complete?"
            )
            findings.append(Finding("most images unusable", "error", message, lost))
    return findings


def odd_images(parts: Parts, thumbnails: Mapping[Path, NDArray[np.uint8]], readable: Mapping[Path, bool]) -> list[Finding]:
    """Find images that are tiny, very long, or of one colour.

    Args:
        parts: the splits.
        thumbnails: thumbnail of each image, [64, 64].
        readable: whether it could be read.
    """
    records = [record for data in parts.values() for record in data.records]
    findings = []
    small = [record for record in records if min(record.width, record.height) < _SMALL_SIDE]
    if small:
        message = f"{_are(len(small))} less than {_SMALL_SIDE} pixels wide or high: thumbnails, or icons?"
        findings.append(_of(small, "tiny image", "warning", message))
    long = [record for record in records if max(record.width, record.height) > _LONG * min(record.width, record.height)]
    if long:
        message = (
            f"{_are(len(long))} more than {_LONG:g} times as long as wide: training squeezes each to a square; cut them up."
        )
        findings.append(_of(long, "long image", "warning", message))
    blank = [record for record in records if readable.get(record.path) and float(thumbnails[record.path].std()) < _EMPTY]
    if blank:
        boxed = sum(len(record.labels) > 0 for record in blank)
        message = f"{_are(len(blank))} of one colour" + (f", {boxed:,} of them with boxes." if boxed else ".")
        findings.append(_of(blank, "image without content", "warning" if boxed else "note", message))
    return findings


def split_sizes(parts: Parts, set_aside: float | None = None) -> list[Finding]:
    """Check that there is enough to learn from and to score on.

    Args:
        parts: the splits.
        set_aside: share of ``train`` that becomes ``val``; None if the data set has a ``val``.
    """
    findings = []
    train, val = parts.get("train"), parts.get("val")
    if train is None:
        message = f"there is no split train to learn from, but {some(parts)}; name one of them train."
        findings.append(Finding("no training split", "error", message))
    elif not _boxes(train):
        findings.append(Finding("nothing to learn", "error", "train has no box to learn from: every image is background."))
    elif len(train.records) < _FEW:
        message = (
            f"train has {plural(len(train.records), 'image')}; detectors trained on fewer than {_FEW} are usually poor."
        )
        findings.append(Finding("few images", "warning", message))
    if val is not None and not _boxes(val):
        findings.append(Finding("nothing to score", "error", "val has no box, so checkpoints cannot be compared."))
    elif val is not None and len(val.records) < _FEW_TO_SCORE:
        message = f"val has {plural(len(val.records), 'image')}: its score is mostly noise; even {_FEW_TO_SCORE} are few."
        findings.append(Finding("few images to score", "warning", message))
    if train is not None and _boxes(train) and set_aside is not None:
        count = len(train.records)
        aside = count_aside(count, set_aside)
        if 0 < aside < _FEW_TO_SCORE:
            message = (
                f"there is no val, and train sets {aside:,} of its {plural(count, 'image')} aside: their score is mostly "
                f"noise; even {_FEW_TO_SCORE} are few."
            )
            findings.append(Finding("few images to score", "warning", message))
    for split, data in parts.items():
        empty = [record for record in data.records if not len(record.labels)]
        if empty and _boxes(data):
            share = len(empty) / len(data.records)
            message = (
                f"{len(empty):,} of the {plural(len(data.records), 'image')} of {split} ({share:.0%}) have no box: right "
                "if there is nothing to find in them, wrong if they are unlabelled."
            )
            findings.append(_of(empty, "images without boxes", "warning" if share > _HALF else "note", message))
    return findings


def _boxes(data: DetectionData) -> int:
    return sum(int((~record.crowd).sum()) for record in data.records)


def _are(count: int) -> str:
    return f"{plural(count, 'image')} {'is' if count == 1 else 'are'}"


def _of(records: list[ImageRecord], kind: str, severity: Severity, message: str) -> Finding:
    pictures = [Picture(record.path, f"{record.path.name}, {record.width} x {record.height}") for record in records]
    return Finding(kind, severity, message, [str(record.path) for record in records], pictures=pictures)
