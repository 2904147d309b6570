"""Findings about boxes show the boxes that they are about, and crowds are none of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from nextdetr.analysis.doctor.boxes import equal_boxes, small_boxes, whole_image_boxes
from nextdetr.analysis.doctor.findings import Mark
from nextdetr.analysis.doctor.page import _thumbnail
from nextdetr.data.records import DetectionData, ImageRecord


def parts(*boxes: list, crowd: tuple = (), images: int = 1) -> dict[str, DetectionData]:
    corners = np.array(boxes, np.float32)
    records = [
        ImageRecord(
            Path(f"{number}.jpg"), number, 100, 100, corners, np.zeros(len(boxes), np.int64),
            np.isin(np.arange(len(boxes)), crowd), corners[:, 0],
        )
        for number in range(images)
    ]  # fmt: skip
    return {"train": DetectionData("set", "train", ["cat"], [1], records, [])}


def doubtful(finding) -> list[tuple[float, ...]]:
    return [mark.box for picture in finding.pictures for mark in picture.marks if mark.doubtful]


def test_the_small_box_is_shown_and_no_crowd_before_it():
    (finding,) = small_boxes(parts([0, 0, 90, 90], [10, 10, 12, 12], crowd=(0,)), 64, 8, "model")
    assert doubtful(finding) == [(10, 10, 12, 12)]


def test_the_box_of_the_whole_image_is_shown():
    (finding,) = whole_image_boxes(parts([5, 5, 20, 20], [0, 0, 100, 100], [0, 0, 100, 99.5], [0, 0, 99, 100], crowd=(3,)))
    assert finding.message.startswith("2 of the 3 boxes of train are the whole image")
    assert doubtful(finding) == [(0, 0, 100, 100), (0, 0, 100, 99.5)]


def test_the_same_crowd_in_many_images_is_no_box():
    """A fixed camera has its ignored region at one place."""
    assert equal_boxes(parts([10, 10, 60, 50], images=6))
    assert equal_boxes(parts([10, 10, 60, 50], crowd=(0,), images=6)) == []


def test_labels_of_the_page_are_in_the_letters_of_their_script(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (200, 200), "white").save(path)
    beetle, bream = (_thumbnail(path, (Mark((20, 60, 180, 180), name, True),)) for name in ("жук", "жак"))
    assert beetle != bream
