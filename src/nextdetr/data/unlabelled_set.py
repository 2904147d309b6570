"""Unlabelled images that a training may use: none that it is scored on, and none that is already labelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nextdetr.data.check import summarize_problems
from nextdetr.data.joined import DataSets
from nextdetr.data.leak import same_files
from nextdetr.data.near_copies import near_copies, upright_pictures
from nextdetr.data.raw import plural
from nextdetr.data.records import DetectionData, ImageRecord, Problem
from nextdetr.data.sources import available_splits, load_data
from nextdetr.data.unlabelled import find_unlabelled
from nextdetr.errors import DataError

__all__ = ["UnlabelledSet", "find_more"]


@dataclass(frozen=True, slots=True)
class UnlabelledSet:
    """Images to learn from beside the labelled ones.

    Attributes:
        data: the images, split ``unlabelled``; may be empty.
        left_out: number of images left out, by the split that also has them.
        lines: messages for the user.
    """

    data: DetectionData
    left_out: dict[str, int]
    lines: list[str]


def find_more(sources: Sequence[str], data: DataSets, train: DetectionData, val: DetectionData) -> UnlabelledSet:
    """List the images of ``sources`` that are in no split of a data set, neither as identical files nor as near copies.

    Near copies are resized, brightened or re-encoded images, or frames of one video with little motion (see
    ``data/near_copies.py``). Labelled training images are left out too: their boxes are known, so the teacher could add
    nothing.

    Args:
        sources: as for ``find_unlabelled``.
        data: the data set, or several.
        train: training split as read by the training.
        val: validation split likewise; may be part of ``train`` that was set aside.

    Raises:
        DataError: a source cannot be used.
    """
    found = find_unlabelled(sources, "to learn from without labels")
    splits, lines = _splits(data, train, val)
    pictures, faults = upright_pictures([record.path for record in found.records], train.reading)
    kept = np.array([record.path not in faults for record in found.records], dtype=np.bool_)
    left_out: dict[str, int] = {}
    for name, records in splits.items():
        same = np.array([path is not None for path in same_files(records, found.records)], dtype=np.bool_)
        others, unreadable = upright_pictures([record.path for record in records], train.reading)
        if unreadable:
            lines.append(_of_unreadable(name, unreadable))
        close = near_copies(pictures, others)
        out = (same | close) & kept
        kept &= ~out
        if out.any():
            left_out[name] = int(out.sum())
    records = [record for record, keep in zip(found.records, kept, strict=True) if keep]
    lines.append(_line(len(found.records) - len(faults), len(records), left_out))
    if found.recognised:
        lines.insert(0, f"Unlabelled images read as {found.recognised}")
    problems = [*found.problems, *(Problem(str(path), "", fault, "damaged image") for path, fault in faults.items())]
    if problems:
        lines.append(summarize_problems(problems))
    return UnlabelledSet(
        replace(found, split="unlabelled", records=records, classes=train.classes, reading=train.reading), left_out, lines
    )


def _splits(data: DataSets, train: DetectionData, val: DetectionData) -> tuple[dict[str, list[ImageRecord]], list[str]]:
    """Return the images of every split, those used for scores first, and what could not be read."""
    splits, lines = {"val": list(val.records)}, []
    for name in available_splits(data):
        if name in ("train", "val"):
            continue
        try:
            splits[name] = load_data(data, name, classes=train.classes, check_images=False).records
        except DataError as error:
            lines.append(f"the split {name} cannot be read, so its images cannot be excluded here: {error}")
    splits["train"] = list(train.records)
    return {name: [r for r in records if Path(r.path).is_file()] for name, records in splits.items()}, lines


def _of_unreadable(split: str, faults: Mapping[Path, str]) -> str:
    path, fault = next(iter(faults.items()))
    return (
        f"{plural(len(faults), 'image')} of {split} cannot be read (such as {path}: {fault}), so only identical files, and "
        "no near copies, are recognised there"
    )


def _line(found: int, kept: int, left_out: dict[str, int]) -> str:
    parts = ", ".join(f"{count:,} in {name}" for name, count in left_out.items())
    out = f"; {found - kept:,} of {found:,} left out, as they or near copies are labelled: {parts}" if parts else ""
    return f"unlabelled: {plural(kept, 'image')}{out}"
