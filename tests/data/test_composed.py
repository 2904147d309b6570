from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from nextdetr.boxes import cxcywh_to_xyxy
from nextdetr.data.composed import ComposeConfig, ComposedDataset, _Canvas, as_objects
from nextdetr.data.dataset import SampleKey
from nextdetr.data.proposals import SIDE, find_segments
from nextdetr.data.transforms import AugmentConfig, TrainTransform
from nextdetr.data.unlabelled import find_unlabelled

PLAIN = TrainTransform(AugmentConfig(photometric=0.0, zoom_out=0.0, iou_crop=0.0, flip=0.0))
DISCS = [((30, 40), 16, (200, 30, 30)), ((120, 60), 22, (20, 20, 160)), ((80, 150), 12, (20, 120, 20))]


def picture(noise=0):
    image = Image.new("RGB", (SIDE, SIDE), (150, 150, 140))
    draw = ImageDraw.Draw(image)
    for (x, y), radius, colour in DISCS:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    pixels = np.asarray(image, dtype=np.int16) + np.random.default_rng(noise).integers(-6, 7, (SIDE, SIDE, 3))
    return pixels.clip(0, 255).astype(np.uint8)


@pytest.fixture
def data(tmp_path):
    for number in range(3):
        Image.fromarray(picture(number)).resize((2 * SIDE, SIDE)).save(tmp_path / f"{number}.png")
    return as_objects(find_unlabelled([tmp_path]))


def test_what_stands_out_is_found_with_its_box():
    segments = find_segments(picture())
    best = sorted(segment.box for segment in segments if segment.score > 0.5)
    expected = sorted((x - r, y - r, x + r + 1, y + r + 1) for (x, y), r, _ in DISCS)
    assert len(best) == 3
    assert np.abs(np.array(best) - np.array(expected)).max() <= 2
    for segment in segments[:3]:
        left, top, right, bottom = segment.box
        assert segment.mask.shape == (bottom - top, right - left)
        assert abs(segment.mask.mean() - np.pi / 4) < 0.06
    assert [s.score for s in segments] == sorted((s.score for s in segments), reverse=True)


def test_a_ring_is_filled_and_ground_and_slivers_are_no_objects():
    image = Image.new("RGB", (SIDE, SIDE), (150, 150, 140))
    draw = ImageDraw.Draw(image)
    draw.ellipse((40, 40, 90, 90), outline=(20, 20, 20), width=8)
    draw.rectangle((100, 20, 103, 150), fill=(250, 20, 20))
    segments = find_segments(np.asarray(image))
    ring = max(segments, key=lambda segment: segment.mask.size)
    assert np.abs(np.array(ring.box) - (40, 40, 91, 91)).max() <= 2
    assert ring.mask[25, 25]
    assert not any(s.box[2] - s.box[0] < 8 and s.box[3] - s.box[1] > 100 for s in segments)
    assert find_segments(np.full((SIDE, SIDE, 3), 90, dtype=np.uint8)) == []


def test_found_objects_are_the_targets_of_an_unchanged_picture(data):
    dataset = ComposedDataset(data, PLAIN, compose=ComposeConfig(kind="found"))
    pixels, target, index = dataset[SampleKey(0, 1, SIDE)]
    assert (pixels.shape, index) == ((3, SIDE, SIDE), 1)
    boxes = cxcywh_to_xyxy(target.boxes) * SIDE
    assert len(boxes) >= 3
    for (x, y), r, _ in DISCS:
        assert (boxes - torch.tensor([x - r, y - r, x + r + 1, y + r + 1])).abs().amax(dim=1).min() <= 3
    assert target.labels.tolist() == [0] * len(boxes)


def test_a_pasted_box_encloses_what_the_paste_has_changed(data):
    # One disc on an even ground: what differs from the ground is what was pasted.
    config = ComposeConfig(kind="pasted", most_pasted=1)
    dataset = ComposedDataset(data, PLAIN, compose=config)
    dataset.read(0)
    seen = 0
    for epoch in range(12):
        key = SampleKey(epoch, 0, SIDE)
        pixels, target, _ = dataset[key]
        plain = PLAIN(dataset.read(0), np.zeros((0, 4)), np.zeros(0, dtype=np.int64), size=SIDE, seed=0)[0]
        changed = ((pixels - plain).abs().amax(dim=0) > 0.02).nonzero()
        if not len(target.boxes):
            assert not len(changed)
            continue
        (box,) = cxcywh_to_xyxy(target.boxes) * SIDE
        low, high = changed.amin(dim=0).flip(0), changed.amax(dim=0).flip(0) + 1
        # A soft edge changes pixels outside the box a little; a piece of the ground's colour may change fewer.
        assert (low >= box[:2] - 5).all()
        assert (high <= box[2:] + 5).all()
        seen += 1
    assert seen >= 6


def test_a_sample_depends_on_its_key_alone(data):
    keys = [SampleKey(0, 0, 96), SampleKey(0, 1, 96), SampleKey(1, 0, 96), SampleKey(0, 0, 96, copy=1)]
    forwards, backwards = ComposedDataset(data, PLAIN, 3), ComposedDataset(data, PLAIN, 3)
    first = [forwards[key] for key in keys]
    second = [backwards[key] for key in reversed(keys)][::-1]
    for (pixels, target, _), (again, other, _) in zip(first, second, strict=True):
        assert torch.equal(pixels, again)
        assert torch.equal(target.boxes, other.boxes)
    assert not torch.equal(first[0][0], first[2][0])
    assert not torch.equal(first[0][0], first[3][0])
    assert not torch.equal(ComposedDataset(data, PLAIN, 4)[keys[0]][0], first[0][0])


def test_a_piece_that_would_hide_another_is_not_pasted_and_a_covered_object_is_no_target():
    canvas = _Canvas(np.zeros((64, 64, 3), dtype=np.float32), np.array([[0, 0, 20, 20], [40, 40, 60, 60.0]]), 0.5)
    piece, cover = np.ones((20, 20, 3), dtype=np.float32), np.ones((20, 20), dtype=np.float32)
    canvas.paste(piece, cover, np.array([10.0, 10.0]))
    assert canvas.boxes().tolist() == [[40, 40, 60, 60], [0, 0, 20, 20]]  # found: the first is covered
    canvas.paste(piece, cover, np.array([13.0, 10.0]))  # would leave 3 of 20 columns
    assert len(canvas.boxes()) == 2
    canvas.paste(piece, cover, np.array([22.0, 10.0]))
    assert canvas.boxes().tolist() == [[40, 40, 60, 60], [0, 0, 12, 20], [12, 0, 32, 20]]
    canvas.paste(piece, cover, np.array([62.0, 10.0]))  # 12 of 20 columns lie inside
    assert canvas.boxes()[-1].tolist() == [52, 0, 64, 20]
    canvas.paste(piece, cover, np.array([62.0, 2.0]))  # too little inside
    assert len(canvas.boxes()) == 4
