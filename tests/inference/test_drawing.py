from __future__ import annotations

import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from nextdetr.engine.batch_picture import draw_batch
from nextdetr.inference import drawing
from nextdetr.inference._supervision import sv
from nextdetr.inference.drawing import COLOURS, draw_detections
from nextdetr.inference.objects import Objects
from nextdetr.inference.prediction import Prediction
from nextdetr.inference.results import Result
from nextdetr.inference.tracking import Follower
from nextdetr.inference.writers.pictures import plain
from nextdetr.serve import batcher, engine
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
    turned = draw_detections(image, found([[50, 30, 10, 5]], [0]))
    assert np.array_equal(*(drawn(Image.fromarray(image), [box], [0]) for box in ([50, 30, 10, 5], [10, 5, 50, 30])))
    assert share(turned, COLOURS[0]) > 0


def drawn(image: Image.Image, boxes: list[list[float]], labels: list[int]) -> np.ndarray:
    """The pixels of an image with boxes and no labels."""
    picture = image.copy()
    drawing._draw_boxes(picture, np.array(boxes, np.float64), np.array(labels))
    return np.asarray(picture)


@pytest.mark.parametrize(("side", "thickness"), [(100, 1), (400, 2), (1000, 3), (1400, 4), (2000, 6)])
def test_boxes_are_those_that_supervision_draws(side, thickness):
    """All but a few pixels of the round corners of thick lines."""
    shares = [[0.2, 0.3, 0.703, 0.809], [0.5, 0.1, 0.955, 0.6], [-0.1, 0.6, 0.3, 1.2], [0.1, 0.1, 0.9, 0.9]]
    boxes, labels = np.array(shares) * side, np.array([0, 5, 17, 3])
    scene = np.zeros((side, side, 3), np.uint8)
    annotator = sv.BoxAnnotator(sv.ColorPalette.from_hex(list(COLOURS)), thickness)
    annotator.annotate(scene, sv.Detections(boxes.clip(0, side - 1), class_id=labels))
    picture = drawn(Image.new("RGB", (side, side)), boxes.tolist(), labels.tolist())
    different = np.argwhere((picture != scene[:, :, ::-1]).any(axis=2))
    assert len(different) <= (0 if thickness < 3 else 8 * len(boxes))
    corners = boxes.clip(0, side - 1).astype(int)[:, [[1, 0], [1, 2], [3, 0], [3, 2]]].reshape(-1, 2)  # y, x
    for place in different:
        assert np.abs(corners - place).max(axis=1).min() <= thickness / 2 + 1


def test_lines_around_small_objects_are_thinner_and_below_thick_ones():
    small, large = [88, 300, 112, 324], [100, 100, 900, 900]
    picture = drawn(Image.new("RGB", (1000, 1000)), [large, small], [0, 1])
    across = [tuple(picture[312, x]) for x in range(80, 120)]
    assert across.count(colour(COLOURS[0])) == 5
    assert across.count(colour(COLOURS[1])) == 2 * 3
    assert tuple(picture[300, 100]) == colour(COLOURS[0])
    assert tuple(drawn(Image.new("RGB", (1000, 1000)), [small, large], [1, 0])[300, 100]) == colour(COLOURS[0])


def test_pictures_look_the_same_wherever_they_are_made():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8))
    boxes, names = np.array([[50, 60, 250, 180], [20, 30, 60, 70]], np.float32), np.array(["cat", "dog"])
    objects = Objects(boxes, np.array([0.9, 0.6], np.float32), np.array([0, 1]), data={"class_name": names})
    prediction = Prediction("a.png", *image.size, objects, image)
    job = batcher.Job(b"", "a.png", {}, 0.0, draw="PNG", image=image)
    expected = np.asarray(draw_detections(image, objects))
    pictures = {
        "of a photograph": plain(image, prediction), "streamed": prediction.plot(),
        "by the server": engine._drawn(job, objects),
        "of a video": Follower(confidence=0.5, track=False).draw(image, prediction),
        "of a result": Result.of(prediction).plot(image), "of supervision's": draw_detections(image, prediction.detections),
    }  # fmt: skip
    for where, picture in pictures.items():
        opened = Image.open(BytesIO(picture)) if isinstance(picture, bytes) else picture
        assert np.array_equal(np.asarray(opened), expected), where


@pytest.mark.parametrize("boxes", [[], [[5, 5, 30, 30]]])
def test_what_the_photographs_file_says_of_itself_is_not_in_the_picture(boxes):
    """Pillow would write some of it, such as a comment, and in PNG the orientation of what is upright by now."""
    image = Image.new("RGB", (40, 40))
    image.info |= {"comment": b"private", "exif": b"Exif"}
    assert draw_detections(image, found(boxes, [0] * len(boxes))).info == {}
    assert image.info == {"comment": b"private", "exif": b"Exif"}


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
