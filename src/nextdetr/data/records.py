"""What a reader returns: one record an image, whatever the format of the files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nextdetr.preprocess import AS_EVER, Reading

__all__ = ["DetectionData", "ImageRecord", "Problem"]


@dataclass(frozen=True, slots=True, eq=False)
class ImageRecord:
    """One image and what is known to be in it; N may be 0 (background).

    Attributes:
        path: the image file.
        image_id: the file's own id, unique in its data set: COCO's ``id``, else the name that the annotations go by.
        width: pixels, as displayed: after the EXIF orientation is applied.
        height: pixels, likewise.
        boxes: [N, 4] float32, xyxy, pixels of the displayed image, inside it and of positive area.
        labels: [N] int64, class indices 0 to C-1.
        crowd: [N] bool; crowds are left out of training and ignored by the metric.
        areas: [N] float32, square pixels: COCO's ``area`` (of the mask, usually) where it is given, else the box's own. The
            metric sorts objects into small, medium and large by it.
        confidence: [N] float32, 0 to 1: how sure a detector was of each box, NaN for one that was drawn by hand; None
            where no box of the image has one. Training takes all boxes alike.
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
    """One thing that is wrong with a data set, and what was done about it.

    Attributes:
        file: the file that is at fault, as the user would find it.
        where: line, annotation id or object within ``file``; empty when the whole file is meant.
        message: a clause that says what is wrong and what was done ("the box has no area; dropped").
        kind: a short noun phrase to count by ("box without area").
    """

    file: str
    where: str
    message: str
    kind: str = "other"


@dataclass(frozen=True, slots=True, eq=False)
class DetectionData:
    """One split of a data set.

    Attributes:
        name: what the data set is called, for headings and reports.
        split: train, val, test, or whatever the data set calls it.
        classes: names of the classes; the position is the model's index.
        category_ids: the files' own id of each class, in the order of ``classes``; -1 for a class that they do not have.
        records: the images that can be used.
        problems: everything that was dropped, changed or doubtful.
        own_ids: whether ``image_id`` is an id that the files give, as COCO's do, and not a name.
        reading: how its pictures are read.
        recognised: one line: as what its path was recognised, and what shows it ("voc: Annotations/, JPEGImages/").
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
