"""Result of a reader: one record per image, whatever the format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nextdetr.preprocess import AS_EVER, Reading

__all__ = ["DetectionData", "ImageRecord", "Problem", "read_as"]


@dataclass(frozen=True, slots=True, eq=False)
class ImageRecord:
    """One image and its objects; N may be 0 (background).

    Attributes:
        path: the image file.
        image_id: the file's own id, unique in its data set: COCO's ``id``, else the name in the annotations.
        width: pixels as displayed, with the EXIF orientation applied.
        height: pixels, likewise.
        boxes: [N, 4] float32, xyxy, pixels of the displayed image, inside it and of positive area.
        labels: [N] int64, class indices 0 to C-1.
        crowd: [N] bool; crowds are left out of training and ignored by the metric.
        areas: [N] float32, square pixels: COCO's ``area`` (usually of the mask) if given, else that of the box. The metric
            sorts objects into small, medium and large by it.
        confidence: [N] float32, 0 to 1, from a detector, NaN for boxes drawn by hand; None if no box of the image has one.
            Training treats all boxes alike.
    """

    path: Path
    image_id: int | str
    width: int
    height: int
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float32]
    confidence: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem in a data set, and how it was handled.

    Attributes:
        file: the file with the problem, as the user would find it.
        where: line, annotation id or object within ``file``; empty for the whole file.
        message: a clause that says what is wrong and what was done ("the box has no area; dropped").
        kind: a short noun phrase for counting ("box without area").
    """

    file: str
    where: str
    message: str
    kind: str = "other"


@dataclass(frozen=True, slots=True, eq=False)
class DetectionData:
    """One split of a data set.

    Attributes:
        name: name of the data set, for headings and reports.
        split: train, val, test, or any other name in the data set.
        classes: names of the classes; the position is the model's index.
        category_ids: the files' own id of each class, in the order of ``classes``; -1 for a class that they lack.
        records: the usable images.
        problems: everything that was dropped, changed or doubtful.
        own_ids: whether ``image_id`` is an id from the files, as in COCO, rather than a name.
        reading: how its images are read.
        recognised: one line: the format of its path and the evidence ("voc: Annotations/, JPEGImages/").
        notes: sentences for the user on how several data sets became one; empty for a single one.
    """

    name: str
    split: str
    classes: list[str]
    category_ids: list[int | str]
    records: list[ImageRecord]
    problems: list[Problem]
    own_ids: bool = False
    reading: Reading = AS_EVER
    recognised: str = ""
    notes: tuple[str, ...] = ()


def read_as(recognised: str) -> str:
    """Return the line that tells the user how a data set was recognised.

    Args:
        recognised: as in :class:`DetectionData`.
    """
    return f"Data set read as {recognised}"
