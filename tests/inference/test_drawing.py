from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from nextdetr.engine.batch_picture import draw_batch
from nextdetr.inference._supervision import sv
from nextdetr.inference.drawing import COLOURS, draw_detections
from nextdetr.structures import Target


def colour(name: str) -> tuple[int, ...]:
    return tuple(int(name[start : start + 2], 16) for start in (1, 3, 5))


def found(boxes, labels, scores=None, names=None) -> sv.Detections:
    return sv.Detections(
        xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        class_id=np.array(labels, np.int64),
        confidence=None if scores is None else np.array(scores, np.float32),
        data={} if names is None else {"class_name": np.array(names)},
    )


def share(picture: Image.Image, name: str) -> float:
    return float((np.asarray(picture) == colour(name)).all(axis=2).mean())


def test_boxes_stand_where_they_should_in_the_colour_of_their_class():
    image = Image.new("RGB", (300, 200), (10, 20, 30))
    picture = draw_detections(image, found([[50, 60, 250, 180]], [1], [0.9]), ["cat", "dog"])
    assert picture.size == image.size
    for spot in ((50, 120), (250, 120), (150, 180)):
        assert picture.getpixel(spot) == colour(COLOURS[1])
    assert picture.getpixel((150, 120)) == (10, 20, 30)
    assert image.getcolors() == [(300 * 200, (10, 20, 30))], "the caller's image was drawn on"


def test_the_label_says_name_and_confidence():
    image = Image.new("RGB", (300, 200))

    def label(**keywords: object) -> np.ndarray:
        return np.asarray(draw_detections(image, found([[50, 60, 250, 180]], [0], **keywords), ["cat"]))[:59]

    named = label(scores=[0.9])
    assert named.max() > 0
    assert not np.array_equal(named, label(scores=[0.8]))
    assert not np.array_equal(named, label())
    assert np.array_equal(named, label(scores=[0.9], names=["cat"]))
    assert not np.array_equal(named, label(scores=[0.9], names=["dog"]))
    assert not np.array_equal(label(names=["жук"]), label(names=["жак"])), "letters beyond ASCII are all drawn alike"


def test_labels_stay_inside_the_picture():
    corners = [[0, 0, 60, 40], [240, 0, 300, 40], [0, 160, 60, 200], [240, 160, 300, 200]]
    shares = []
    for box in corners:
        drawn = draw_detections(Image.new("RGB", (300, 200)), found([box], [0], [0.5]), ["a rather long name"])
        shares.append(share(drawn, COLOURS[0]))
    box_alone = 2 * 2 * (60 + 40) / (300 * 200)
    assert min(shares) > 2 * box_alone
    assert max(shares) < 1.05 * min(shares), "a label is cut off"


def test_in_a_crowd_every_box_is_drawn_and_most_of_the_picture_stays_visible():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 280, (150, 2))
    boxes = np.concatenate((low, low + 10), axis=1)
    picture = draw_detections(Image.new("RGB", (300, 300)), found(boxes, [0] * 150, rng.uniform(0.3, 1, 150)), ["face"])
    drawn = np.asarray(picture)
    assert (drawn == 0).all(axis=2).mean() > 0.3
    centres = boxes[:, :2] + 5
    visible = [tuple(drawn[int(y), int(x)]) == (0, 0, 0) for x, y in centres]
    assert np.mean(visible) > 0.7


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK"])
def test_other_modes_come_out_as_rgb(mode):
    assert draw_detections(Image.new(mode, (40, 40)), found([], [])).mode == "RGB"


def test_awkward_detections():
    image = np.zeros((40, 60, 3), np.uint8)
    assert draw_detections(image, sv.Detections.empty()).size == (60, 40)
    draw_detections(image, found([[-10, -10, 900, 900], [5, 5, 5, 5]], [0, 99], [1.0, 0.0]), ["cat"])
    draw_detections(image, sv.Detections(xyxy=np.array([[1, 1, 20, 20]])))
    draw_detections(Image.new("RGB", (1, 1)), found([[0, 0, 1, 1]], [0], [0.5]), ["cat"])


class TestBatch:
    def batch(self, number: int, size: int = 64) -> tuple[torch.Tensor, list[Target]]:
        target = Target(torch.tensor([[0.5, 0.5, 0.5, 0.5]]), torch.tensor([2]))
        return torch.zeros(number, 3, size, size), [target] * number

    def test_a_grid_with_boxes(self):
        images, targets = self.batch(5)
        images[1] = 1
        targets[4] = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
        picture = draw_batch(images, targets, ["a", "b", "c"])
        assert picture.size == (3 * 64 + 2 * 4, 2 * 64 + 4)
        assert picture.getpixel((16, 40)) == colour(COLOURS[2])
        assert picture.getpixel((68 + 16, 40)) == colour(COLOURS[2])
        assert picture.getpixel((68 + 32, 40)) == (255, 255, 255)
        assert share(picture.crop((68, 68, 132, 132)), COLOURS[2]) == 0

    def test_size_and_number_are_bounded(self):
        images, targets = self.batch(20, 640)
        picture = draw_batch(images, targets, ["a", "b", "c"])
        assert picture.size == (4 * 480 + 3 * 4,) * 2

    def test_one_image(self):
        assert draw_batch(*self.batch(1), ["a", "b", "c"]).size == (64, 64)


def test_supervision_says_nothing_about_opencv():
    code = "import nextdetr.inference._supervision"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("", "")


@pytest.mark.parametrize(("side", "least", "most"), [(100, 0.02, 0.08), (640, 0.006, 0.02), (4000, 0.006, 0.02)])
def test_lines_and_labels_fit_the_picture(side, least, most):
    """What is drawn takes a like share of small and large pictures, and hides little of either."""
    boxes = np.array([[0.2, 0.3, 0.5, 0.6]]) * side
    picture = draw_detections(Image.new("RGB", (side, side)), found(boxes, [0], [0.9], ["platelets"]))
    assert least < (np.asarray(picture) > 0).any(axis=2).mean() < most
