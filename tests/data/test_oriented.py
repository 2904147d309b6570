"""Turned splits: pixels and boxes turn together."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from nextdetr.data.oriented import ROTATED_180, TURNED_LEFT, TURNED_RIGHT, UPSIDE_DOWN, oriented
from nextdetr.data.records import DetectionData, ImageRecord
from nextdetr.preprocess import load_image

# Where a point at 10 % of the width and 20 % of the height goes.
CORNERS = {
    ROTATED_180: (0.9, 0.8),
    UPSIDE_DOWN: (0.1, 0.8),
    TURNED_LEFT: (0.2, 0.9),
    TURNED_RIGHT: (0.8, 0.1),
}


def split(folder, **settings):
    """One image of 40 x 20 pixels with a red box, as written by a camera that was held upside down if asked for."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[2:6, 3:12] = (255, 0, 0)
    path = folder / "image.png"
    exif = Image.Exif()
    if settings.get("camera"):
        pixels = pixels[::-1, ::-1]
        exif[0x0112] = 3
    Image.fromarray(pixels).save(path, exif=exif)
    boxes, one = np.array([[3, 2, 12, 6]], np.float32), np.ones(1, np.float32)
    record = ImageRecord(path, 1, 40, 20, boxes, np.zeros(1, np.int64), np.zeros(1, bool), 36 * one)
    return DetectionData("one", "val", ["red"], [0], [record], [])


@pytest.mark.parametrize("camera", [False, True])
@pytest.mark.parametrize("orientation", CORNERS)
def test_boxes_follow_the_pixels(tmp_path, orientation, camera):
    data = oriented(split(tmp_path, camera=camera), orientation)
    record = data.records[0]
    image = np.asarray(load_image(record.path, data.reading))
    assert image.shape[:2] == (record.height, record.width)
    rows, columns = np.nonzero(image[..., 0])
    assert record.boxes.tolist() == [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]
    assert record.boxes.dtype == np.float32
    x, y = CORNERS[orientation]
    assert record.boxes[0, [0, 2]].mean() / record.width == pytest.approx(x, abs=0.1)
    assert record.boxes[0, [1, 3]].mean() / record.height == pytest.approx(y, abs=0.1)


def test_a_background_image_and_the_original_stay_as_they_are(tmp_path):
    data = split(tmp_path)
    empty = ImageRecord(
        data.records[0].path, 2, 40, 20, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool),
        np.zeros(0, np.float32),
    )  # fmt: skip
    data.records.append(empty)
    turned = oriented(data, TURNED_LEFT)
    assert turned.records[1].boxes.shape == (0, 4)
    assert (turned.records[1].width, turned.records[1].height) == (20, 40)
    assert data.reading.orientation == 1
    assert data.records[0].boxes.tolist() == [[3, 2, 12, 6]]
