"""Labels of a report's pictures hide no object."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from jinja2 import Environment, PackageLoader
from PIL import Image

from nextdetr.data.records import ImageRecord
from nextdetr.inference.placement import COVERED
from nextdetr.preprocess import Reading
from nextdetr.report.confusion import Pairs
from nextdetr.report.labels import LINE, MOST_LABELS, NARROW, place_labels, text_size
from nextdetr.report.pictures import picture

FRAME = (560, 420)


def rectangle(place, text, frame=FRAME):
    size = text_size(frame)
    return np.array((place[0], place[1] - size, place[0] + NARROW * size * len(text), place[1] - size + LINE * size))


def shared(a, b):
    return np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()


@pytest.mark.parametrize(
    ("box", "side"),
    [
        ((200, 200, 212, 210), "above"),
        ((200, 2, 212, 12), "below"),
        ((548, 200, 559, 210), "above"),
        ((0, 0, 12, 419), "right"),
        ((545, 0, 559, 419), "left"),
        ((2, 2, 558, 418), "inside"),
    ],
)
def test_a_label_stands_at_its_box(box, side):
    (place,) = place_labels(np.array([box], np.float32), ["person 0.91"], [0], FRAME)
    x1, y1, x2, y2 = rectangle(place, "person 0.91")
    assert min(x1, y1) >= -0.1
    assert (x2 <= FRAME[0] + 0.1, y2 <= FRAME[1] + 0.1) == (True, True)
    beside = {"above": y2 < box[1], "below": y1 > box[3], "left": x2 < box[0], "right": x1 > box[2], "inside": x1 > box[0]}
    assert beside[side]
    nearest = max(box[0] - x2, x1 - box[2], box[1] - y2, y1 - box[3])
    assert nearest < text_size(FRAME)


@pytest.mark.parametrize("seed", range(5))
def test_labels_hide_neither_objects_nor_each_other(seed):
    generator = np.random.default_rng(seed)
    corners = generator.uniform(0, (520, 380), (60, 2))
    boxes = np.hstack((corners, corners + generator.uniform(4, 40, (60, 2))))
    texts = [f"class {number}" for number in range(60)]
    places = place_labels(boxes, texts, range(60), FRAME)
    labels = [rectangle(place, text) for place, text in zip(places, texts, strict=True) if place is not None]
    assert 1 < len(labels) <= MOST_LABELS
    for number, label in enumerate(labels):
        for box in boxes:
            assert shared(label, box) <= COVERED * (box[2:] - box[:2]).prod() + 0.5  # places are rounded
        assert all(shared(label, other) < 12 for other in labels[:number])


def test_without_room_or_importance_there_is_no_label():
    boxes = np.array([(100, 100, 110, 110), (100, 120, 110, 130)], np.float32)
    assert place_labels(boxes, ["a", "b"], [1], FRAME)[0] is None
    assert place_labels(boxes[:1], ["a long name " * 10], [0], FRAME) == [None]
    assert place_labels(np.zeros((0, 4)), [], [], FRAME) == []
    assert place_labels(np.zeros((1, 4)), ["point"], [0], FRAME) != [None]


def test_a_wide_letter_has_more_room():
    box = np.array([(540, 200, 550, 210)], np.float32)
    (narrow,), (wide,) = (place_labels(box, [text], [0], FRAME) for text in ("aaaa", "细胞细胞"))
    assert wide[0] < narrow[0] - 15


def test_the_picture_labels_errors_in_the_size_that_suits_it(tmp_path):
    Image.new("RGB", (112, 84), "grey").save(tmp_path / "a.png")
    truth = np.array([(10, 40, 16, 46), (60, 40, 66, 46), (90, 60, 96, 66)], np.float32)
    record = ImageRecord(
        Path(tmp_path / "a.png"), 1, 112, 84, truth, np.zeros(3, np.int64), np.zeros(3, bool), np.full(3, 36, np.float32)
    )
    pairs = Pairs(truth, np.array([0, 0, 0]), truth[:2], np.array([0.9, 0.8]), np.array([0, 1]), np.array([0, 1]))
    shown = picture(record, pairs, ["cell", "dust"], Reading())
    found = [(box.kind, box.label is not None) for box in shown.boxes]
    assert found == [("right", False), ("wrong", True), ("missed", True)]
    assert shown.text_size == 3.0
    parts = Environment(loader=PackageLoader("nextdetr.report"), autoescape=True).get_template("parts.html").module
    drawn = parts.picture(shown)
    assert (drawn.count("<text "), drawn.count('font-size="3.0"'), drawn.count("<title>")) == (2, 2, 3)
