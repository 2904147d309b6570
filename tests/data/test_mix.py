"""Mosaic, mixup and pasted boxes: pixels and boxes agree, draws depend on the key alone, off without the strong part."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from nextdetr.boxes import cxcywh_to_xyxy
from nextdetr.data.dataset import DetectionDataset, SampleKey
from nextdetr.data.mix import MixConfig
from nextdetr.data.records import DetectionData, ImageRecord
from nextdetr.data.transforms import AugmentConfig, TrainTransform
from tests.data.test_dataset import same

GEOMETRY = AugmentConfig(photometric=0.0, zoom_out=0.0, iou_crop=0.0, flip=0.5)
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def colour_data(folder, images=9, crowd=False, size=(160, 120)):
    """Pictures with one rectangle of pure colour each, whose class is the colour; some have none."""
    generator, records = np.random.default_rng(5), []
    for number in range(images):
        width, height = size
        pixels = np.full((height, width, 3), 90, np.uint8)
        label = number % 3
        w, h = generator.integers(24, 60, 2)
        x, y = generator.integers(0, width - w), generator.integers(0, height - h)
        if number != 4:
            pixels[y : y + h, x : x + w] = COLOURS[label]
        Image.fromarray(pixels).save(folder / f"{number}.png")
        boxes = np.array([[x, y, x + w, y + h]], np.float32)[: number != 4]
        records.append(
            ImageRecord(
                folder / f"{number}.png", number, width, height, boxes, np.full(len(boxes), label),
                np.full(len(boxes), crowd), np.full(len(boxes), w * h, np.float32),
            )
        )  # fmt: skip
    return DetectionData("colours", "train", ["r", "g", "b"], [1, 2, 3], records, [])


def dataset(data, seed=0, transform=GEOMETRY, **mix):
    return DetectionDataset(data, TrainTransform(transform), seed, mix=MixConfig(**mix))


def coloured(pixels, label):
    """Pixels that are of a class's colour, in any strength that mixup leaves."""
    others = [channel for channel in range(3) if channel != label]
    return (pixels[label] - torch.maximum(pixels[others[0]], pixels[others[1]])) > 0.15


@pytest.mark.parametrize(
    "mix", [{"mosaic": 1.0}, {"mixup": 1.0}, {"copy_paste": 1.0}, {"mosaic": 1.0, "mixup": 1.0, "copy_paste": 1.0}]
)
def test_boxes_cover_their_objects_and_nothing_is_left_unlabelled(tmp_path, mix):
    """Every box is mostly of its class's colour, and every pixel of a colour lies in a box of that class."""
    samples = dataset(colour_data(tmp_path), **mix)
    size, seen = 192, 0
    for epoch in range(6):
        for index in range(9):
            pixels, target, _ = samples[SampleKey(epoch, index, size)]
            assert pixels.shape == (3, size, size)
            assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1
            boxes = cxcywh_to_xyxy(target.boxes) * size
            assert ((boxes >= -1e-3) & (boxes <= size + 1e-3)).all()
            for label in range(3):
                mask = coloured(pixels, label)
                for x1, y1, x2, y2 in boxes[target.labels == label].round().int().tolist():
                    inside = mask[y1:y2, x1:x2]
                    if "mixup" not in mix:  # blended with another object, the colour may be a mixture
                        assert inside.float().mean() > 0.7, (epoch, index, label)
                    mask[max(0, y1 - 2) : y2 + 2, max(0, x1 - 2) : x2 + 2] = False
                    seen += 1
                # what remains belongs to objects whose centre was cut away: they touch a mosaic's seam or the edge
                if "mosaic" not in mix:
                    assert int(mask.sum()) <= 4, (epoch, index, label)
    assert seen > 50


def test_a_mosaic_shows_four_pictures(tmp_path):
    data = colour_data(tmp_path, images=4)
    for number, record in enumerate(data.records):  # four plain pictures without boxes
        Image.new("RGB", (50, 30), (60 * number + 10,) * 3).save(record.path)
    data = DetectionData(
        data.name, "train", data.classes, [1, 2, 3],
        [ImageRecord(r.path, r.image_id, 50, 30, np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty(0, bool),
                     np.empty(0, np.float32)) for r in data.records], [],
    )  # fmt: skip
    counts, shares = [], []
    samples = dataset(data, mosaic=1.0)
    for epoch in range(30):
        pixels, target, _ = samples[SampleKey(epoch, 2, 64)]
        assert len(target) == 0
        values, number = torch.unique((pixels * 255).round(), return_counts=True)
        assert set(values.int().tolist()) <= {10, 70, 130, 190}
        assert 130 in values.int().tolist()  # the picture that the key names is always among them
        counts.append(len(values))
        shares.append(int(number.min()) / (3 * 64 * 64))
    assert max(counts) == 4
    assert min(shares) > 0.04  # each takes at least a quarter of each side, less rounding


def test_mixup_is_the_weighted_sum_of_two_plain_samples(tmp_path):
    data = colour_data(tmp_path)
    plain = AugmentConfig(photometric=0.0, zoom_out=0.0, iou_crop=0.0, flip=0.0)
    alone = DetectionDataset(data, TrainTransform(plain))
    mixed = dataset(data, transform=plain, mixup=1.0, mixup_share=(0.3, 0.3))
    singles = [alone[SampleKey(0, index, 64)] for index in range(9)]
    for index in range(9):
        pixels, target, _ = mixed[SampleKey(0, index, 64)]
        fits = [torch.allclose(pixels, 0.3 * singles[index][0] + 0.7 * other[0], atol=1e-6) for other in singles]
        assert sum(fits) == 1
        other = singles[fits.index(True)]
        assert torch.equal(target.boxes, torch.cat((singles[index][1].boxes, other[1].boxes)))
        assert torch.equal(target.labels, torch.cat((singles[index][1].labels, other[1].labels)))


def test_a_sample_depends_on_its_key_alone(tmp_path):
    data = colour_data(tmp_path)
    options = {"transform": AugmentConfig(), "mosaic": 0.5, "mixup": 0.5, "copy_paste": 0.5}
    first, second = dataset(data, 3, **options), dataset(data, 3, **options)
    keys = [SampleKey(epoch, index, 96) for epoch in range(3) for index in range(9)]
    expected = [first[key] for key in keys]
    torch.manual_seed(99)
    assert all(same(second[key], value) for key, value in reversed(list(zip(keys, expected, strict=True))))
    assert same(pickle.loads(pickle.dumps(first))[keys[5]], expected[5])  # as spawned workers get it
    state = torch.get_rng_state()
    assert not same(dataset(data, 4, **options)[keys[0]], expected[0])
    assert torch.equal(state, torch.get_rng_state())


def test_off_by_default_and_without_the_strong_part(tmp_path):
    data = colour_data(tmp_path)
    plain, mixed = DetectionDataset(data, TrainTransform()), dataset(data, transform=AugmentConfig(), mosaic=1.0, mixup=1.0)
    assert dataset(data).mixer is None
    key = SampleKey(0, 1, 64, strong=False)
    assert same(mixed[key], plain[key])
    assert not same(mixed[SampleKey(0, 1, 64)], plain[SampleKey(0, 1, 64)])


def test_crowds_are_neither_pasted_nor_labelled(tmp_path):
    samples = dataset(colour_data(tmp_path, crowd=True), mosaic=0.5, mixup=0.5, copy_paste=1.0)
    for index in range(9):
        assert len(samples[SampleKey(0, index, 64)][1]) == 0


def test_boxes_without_area_do_no_harm(tmp_path):
    data = colour_data(tmp_path)
    for record in data.records:
        if len(record.boxes):
            record.boxes[0, 2] = record.boxes[0, 0]
    samples = dataset(data, transform=AugmentConfig(), mosaic=0.5, mixup=0.5, copy_paste=1.0)
    for epoch in range(3):
        for index in range(9):
            assert len(samples[SampleKey(epoch, index, 64)][1]) == 0


def test_pasting_adds_boxes_of_rare_classes_more_often_than_their_share(tmp_path):
    data = colour_data(tmp_path, images=8)  # 3 red, 2 green (one picture is empty), 2 blue: skew it by repeating red
    records = [data.records[0]] * 40 + [data.records[1], data.records[2]]
    data = DetectionData("skewed", "train", data.classes, [1, 2, 3], records, [])
    counts = np.zeros(3, int)
    samples = dataset(data, copy_paste=1.0)
    for epoch in range(8):
        for index in range(42):
            labels = samples[SampleKey(epoch, index, 96)][1].labels.numpy()
            counts += np.bincount(labels, minlength=3)
    pasted_red = counts[0] - 40 * 8
    rare = counts[1] + counts[2] - 2 * 8
    # drawn in proportion to the root of the counts: 6.3 : 1 : 1; in proportion to the counts it would be 40 : 1 : 1
    assert 2 < pasted_red / rare < 5
