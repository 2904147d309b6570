"""Labels stand at their boxes and hide nothing that was found, in drawn pictures as in reports."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from nextdetr.inference.drawing import draw_detections
from nextdetr.inference.objects import Objects
from nextdetr.inference.placement import COVERED, LabelPlaces

FRAME = (600, 400)


def shared(a, b):
    return np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("side", [30, 200])
def test_labels_hide_neither_objects_nor_each_other(seed, side):
    generator = np.random.default_rng(seed)
    corners = generator.uniform(0, (560, 360), (60, 2))
    boxes = np.hstack((corners, corners + generator.uniform(4, side, (60, 2)))).clip(0, (*FRAME, *FRAME))
    places = LabelPlaces(boxes, FRAME)
    found = {index: np.array(spot) for index in range(60) if (spot := places.place(index, (70.0, 14.0))) is not None}
    assert len(found) > 5
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    for index, spot in found.items():
        assert (spot >= 0).all()
        assert (spot[2:] <= FRAME).all()
        assert all(shared(spot, box) <= COVERED * (box[2:] - box[:2]).prod() + 1e-6 for box in boxes)
        hidden = ((centres > spot[:2]) & (centres < spot[2:])).all(axis=1)
        assert not np.delete(hidden, index).any()
        assert all(shared(spot, other) == 0 for number, other in found.items() if number != index)


def test_a_box_beyond_the_picture_has_its_label_inside():
    for box in ([-50, -50, 900, 900], [900, 900, -50, -50]):
        spot = LabelPlaces(np.array([box]), FRAME).place(0, (70.0, 14.0))
        assert spot == (0.0, 0.0, 70.0, 14.0)


def test_a_drawn_label_hides_no_part_of_a_small_neighbour():
    boxes = np.array([[100, 100, 112, 112], [120, 70, 140, 92]], np.float32)
    image = Image.new("RGB", (300, 200))
    image.paste((0, 0, 255), (120, 70, 140, 92))
    names = np.array(["face", "face"])
    picture = draw_detections(image, Objects(boxes, np.array([0.9, 0.8]), np.array([0, 0]), data={"class_name": names}))
    inside = np.asarray(picture)[73:90, 123:138]
    assert (inside == (0, 0, 255)).all()


@pytest.mark.parametrize("side", [36, 40, 60])
def test_an_object_that_fills_a_small_picture_has_a_label(side):
    found = Objects(np.array([[0, 0, side, side]], np.float32), np.array([0.9]), np.array([0]))
    inside = np.asarray(draw_detections(Image.new("RGB", (side, side)), found, ["cat"]))[3:-3, 3:-3]
    drawn = (inside > 0).any(axis=2).mean()
    assert 0.05 < drawn < 0.4
    places = LabelPlaces(np.array([[0, 0, side, side], [0, 0, 12, 12], [side - 12, 0, side, 12]]), (side, side))
    assert places.place(0, (20.0, 11.0)) is None, "other objects are still not to be hidden"
