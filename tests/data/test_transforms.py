"""Augmentation: boxes stay on their objects, randomness depends only on the seed, the weak part is plain preprocessing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from nextdetr.boxes import cxcywh_to_xyxy
from nextdetr.data.transforms import (
    AugmentConfig,
    FastIoUCrop,
    TrainTransform,
    multi_scale_sizes,
    plain_transform,
    train_transform,
)
from nextdetr.tensors import resize_to_tensor

OFF = {"photometric": 0.0, "zoom_out": 0.0, "iou_crop": 0.0, "flip": 0.0}
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
BOXES = np.array([[40, 30, 140, 110], [180, 20, 260, 190], [60, 140, 150, 220]], np.float32)
LABELS = np.arange(3)


def scene():
    """A dark 300x240 picture with one rectangle of a pure colour per box."""
    pixels = np.full((240, 300, 3), 12, np.uint8)
    for (x1, y1, x2, y2), colour in zip(BOXES.astype(int), COLOURS, strict=True):
        pixels[y1:y2, x1:x2] = colour
    return Image.fromarray(pixels)


def extent_of_colour(pixels, label):
    """xyxy of the pixels in which the channel of a label clearly leads; None where there are none."""
    others = [channel for channel in range(3) if channel != label]
    seen = (pixels[label] - pixels[others].amax(0)) > 0.4
    rows, columns = seen.any(1).nonzero(), seen.any(0).nonzero()
    if not len(rows):
        return None
    return torch.tensor([columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1]).float()


@pytest.mark.parametrize(
    "options",
    [
        OFF,
        OFF | {"flip": 1.0},
        OFF | {"flip_vertical": 1.0},
        OFF | {"rotate90": 1.0},
        OFF | {"flip": 0.5, "flip_vertical": 0.5, "rotate90": 0.5},
        OFF | {"zoom_out": 1.0},
        OFF | {"zoom_out": 1.0, "zoom_range": (1.0, 1.3)},
        OFF | {"iou_crop": 1.0},
        {"photometric": 0.0, "zoom_out": 0.8, "iou_crop": 1.0, "flip": 0.5, "flip_vertical": 0.5, "rotate90": 0.5},
    ],
    ids=["none", "flip", "vertical", "rotate", "dihedral", "zoom", "zoom-little", "crop", "all"],
)
@pytest.mark.parametrize("size", [224, 320])
def test_boxes_bound_their_pixels(options, size):
    transform, image, seen = train_transform(**options), scene(), 0
    for seed in range(25):
        pixels, target = transform(image, BOXES, LABELS, size=size, seed=seed)
        assert pixels.shape == (3, size, size)
        assert pixels.dtype == torch.float32
        assert pixels.is_contiguous()
        assert pixels.min() >= 0
        assert pixels.max() <= 1
        assert target.boxes.dtype == torch.float32
        assert target.labels.dtype == torch.int64
        for box, label in zip(cxcywh_to_xyxy(target.boxes) * size, target.labels.tolist(), strict=True):
            extent = extent_of_colour(pixels, label)
            assert extent is not None, (seed, label, box)
            # Antialiasing may blur away up to a pixel of an edge.
            assert (box - extent).abs().max() <= 1.5, (seed, label, box, extent)
            seen += 1
    assert seen > 25


def test_zoom_and_crop_do_happen():
    image = scene()
    plain = resize_to_tensor(image, 160)
    for options in (OFF | {"zoom_out": 1.0}, OFF | {"iou_crop": 1.0}, OFF | {"photometric": 1.0}):
        changed = [
            not torch.equal(plain, train_transform(**options)(image, BOXES, LABELS, size=160, seed=s)[0]) for s in range(10)
        ]
        assert sum(changed) >= 5, options


def test_rectangles_that_leave_the_crop_lose_their_box():
    transform, image = train_transform(**(OFF | {"iou_crop": 1.0})), scene()
    counts = {len(transform(image, BOXES, LABELS, size=160, seed=seed)[1]) for seed in range(40)}
    assert 3 in counts
    assert counts & {1, 2}
    assert 0 not in counts  # every crop keeps the centre of at least one box


def test_a_crop_decides_by_centres(monkeypatch):
    transform = train_transform(**(OFF | {"iou_crop": 1.0}))
    within = torch.tensor([False, True, True])  # the centre of the first rectangle, x = 90, is left of the crop
    crop = {"left": 100, "top": 20, "width": 200, "height": 220, "is_within_crop_area": within}
    monkeypatch.setattr(transform._crop, "make_params", lambda _inputs: crop)
    _, target = transform(scene(), BOXES, LABELS, size=220, seed=0)
    assert target.labels.tolist() == [1, 2]
    expected = torch.tensor([[88.0, 0.0, 176.0, 170.0], [0.0, 120.0, 55.0, 200.0]])
    assert torch.allclose(cxcywh_to_xyxy(target.boxes) * 220, expected, atol=1e-4)


def test_zoom_out_fills_with_the_mean_colour():
    image = Image.new("RGB", (64, 48), (200, 100, 50))
    pixels, _ = train_transform(**(OFF | {"zoom_out": 1.0, "zoom_range": (3.0, 4.0)}))(
        image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), size=64, seed=1
    )
    expected = torch.tensor([200, 100, 50]).view(3, 1, 1) / 255
    assert (pixels - expected).abs().max() < 1e-6


def test_weak_part_without_flip_equals_the_one_preprocessing():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (123, 211, 3), dtype=np.uint8))
    boxes = np.array([[10, 20, 110, 90]], np.float32)
    for seed in range(5):
        pixels, target = train_transform(flip=0.0)(image, boxes, np.array([4]), size=96, seed=seed, strong=False)
        assert torch.equal(pixels, resize_to_tensor(image, 96))
        plain_pixels, plain_target = plain_transform(image, boxes, np.array([4]), 96)
        assert torch.equal(pixels, plain_pixels)
        assert torch.equal(target.boxes, plain_target.boxes)
        assert target.labels.tolist() == plain_target.labels.tolist() == [4]
    expected = torch.tensor([[60 / 211, 55 / 123, 100 / 211, 70 / 123]])
    assert torch.allclose(target.boxes, expected, atol=1e-6)


def test_weak_part_still_flips():
    image = scene()
    flipped, target = train_transform(flip=1.0)(image, BOXES, LABELS, size=96, seed=0, strong=False)
    plain, plain_target = plain_transform(image, BOXES, LABELS, 96)
    assert torch.equal(flipped, plain.flip(-1))
    assert torch.allclose(target.boxes[:, 0], 1 - plain_target.boxes[:, 0], atol=1e-6)


def test_turns_agree_with_numpy():
    """Every quarter turn occurs, and turning the picture first gives the same pixels and boxes."""
    image, seen = scene(), set()
    transform = train_transform(**(OFF | {"rotate90": 1.0}))
    plain, _ = plain_transform(image, BOXES, LABELS, 128)
    for seed in range(12):
        pixels, _ = transform(image, BOXES, LABELS, size=128, seed=seed)
        quarters = [k for k in range(4) if np.array_equal(np.rot90(plain.numpy(), k, (1, 2)), pixels.numpy())]
        assert len(quarters) == 1
        seen.update(quarters)
    assert seen == {1, 2, 3}


def test_draws_follow_the_seed_and_leave_the_global_generator_alone():
    transform, image = TrainTransform(), scene()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, first_target = transform(image, BOXES, LABELS, size=96, seed=2**64 - 1)
    assert torch.equal(torch.rand(3), expected)
    second, second_target = transform(image, BOXES, LABELS, size=96, seed=2**64 - 1)
    assert torch.equal(first, second)
    assert torch.equal(first_target.boxes, second_target.boxes)
    others = [transform(image, BOXES, LABELS, size=96, seed=seed)[0] for seed in range(4)]
    assert not any(torch.equal(a, b) for n, a in enumerate(others) for b in others[:n])


def test_the_generator_is_restored_when_the_transform_fails(monkeypatch):
    def fail(_picture):
        torch.rand(1)
        raise MemoryError

    transform = TrainTransform()
    monkeypatch.setattr(transform, "distort", fail)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with pytest.raises(MemoryError):
        transform(scene(), BOXES, LABELS, size=96, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_empty_targets():
    transform = train_transform(flip=0.5, flip_vertical=0.5, rotate90=0.5)
    for boxes in (np.zeros((0, 4), np.float32), np.zeros(0, np.float32)):
        for seed in range(20):
            pixels, target = transform(scene(), boxes, np.zeros(0, np.int64), size=64, seed=seed)
            assert target.boxes.shape == (0, 4)
            assert target.labels.shape == (0,)
            assert pixels.shape == (3, 64, 64)


def test_specks_are_dropped_and_thin_boxes_kept():
    image = Image.new("RGB", (1000, 1000))
    boxes = np.array([[100, 100, 104, 104], [100, 100, 104, 400], [5, 5, 5, 300], [0, 0, 100, 100]], np.float32)
    _, target = plain_transform(image, boxes, np.arange(4), 100)  # 0.4x0.4, 0.4x30, 0x29.5 and 10x10 pixels
    assert target.labels.tolist() == [1, 3]


def test_order_of_channels_is_optional():
    image = Image.new("RGB", (32, 32), (250, 120, 10))
    kept = train_transform(**(OFF | {"photometric": 1.0, "permute_channels": False}))
    for seed in range(10):
        red, green, blue = kept(image, BOXES[:0], LABELS[:0], size=32, seed=seed)[0].mean((1, 2)).tolist()
        assert red > green > blue


def test_fast_crop_draws_from_torchvisions_distribution():
    boxes = tv_tensors.BoundingBoxes(torch.from_numpy(BOXES), format="XYXY", canvas_size=(240, 300))
    means = []
    for crop in (FastIoUCrop(), v2.RandomIoUCrop()):
        torch.manual_seed(1)
        draws = [crop.make_params([boxes]) for _ in range(400)]
        cropped = [d for d in draws if d]
        for d in cropped[:100]:
            assert 0.5 <= d["width"] / d["height"] <= 2
            assert d["left"] >= 0
            assert d["left"] + d["width"] <= 300
            assert d["is_within_crop_area"].any()
        kept = np.mean([d["is_within_crop_area"].float().mean() for d in cropped])
        means.append(
            [
                len(cropped) / 400,
                np.mean([d["width"] / 300 for d in cropped]),
                np.mean([d["top"] / 240 for d in cropped]),
                kept,
            ]
        )
    assert np.abs(np.subtract(*means)).max() < 0.08, means


def test_switches_make_all_directions_equally_frequent():
    assert TrainTransform(flip_vertical=False, rotate90=False).config == AugmentConfig()
    transform = TrainTransform(AugmentConfig(**OFF), flip_vertical=True, rotate90=True)
    plain, _ = plain_transform(scene(), BOXES, LABELS, 48)
    views = [torch.rot90(plain, k, (1, 2)) for k in range(4)]
    views += [torch.rot90(plain.flip(1), k, (1, 2)) for k in range(4)]
    counts = np.zeros(8)
    for seed in range(320):
        pixels, _ = transform(scene(), BOXES, LABELS, size=48, seed=seed)
        (match,) = [k for k, view in enumerate(views) if torch.equal(view, pixels)]
        counts[match] += 1
    assert counts.min() > 20
    assert counts.max() < 64


def test_multi_scale_sizes():
    assert multi_scale_sizes(320) == (256, 288, 320, 352, 384)
    assert multi_scale_sizes(640) == tuple(range(480, 801, 32))
    assert multi_scale_sizes(32) == (32,)


@pytest.mark.shared_data
def test_real_photograph(shared_data):
    image = Image.open(shared_data / "bccd" / "JPEGImages" / "BloodImage_00000.jpg").convert("RGB")
    boxes = np.array([[260, 177, 491, 376], [78, 336, 184, 435]], np.float32)
    for seed in range(20):
        pixels, target = TrainTransform(AugmentConfig(rotate90=0.5))(image, boxes, np.array([1, 0]), size=320, seed=seed)
        corners = cxcywh_to_xyxy(target.boxes)
        assert corners.min() >= -1e-6
        assert corners.max() <= 1 + 1e-6
        assert torch.isfinite(pixels).all()
