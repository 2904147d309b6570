"""Views of unlabelled images: the way to the student's view, which images come when, the same for any number of workers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from nextdetr.data import unlabelled_views
from nextdetr.data.dataset import DetectionDataset
from nextdetr.data.loader import build_loader
from nextdetr.data.records import DetectionData, ImageRecord
from nextdetr.data.transforms import AugmentConfig, TrainTransform
from nextdetr.data.unlabelled_views import StudentView, UnlabelledSampler, WithUnlabelled

EVERYTHING = AugmentConfig(
    photometric=0, zoom_out=0.5, zoom_range=(1, 2), iou_crop=0.5, flip=0.5, flip_vertical=0.5, rotate90=0.75
)


def test_the_way_leads_to_where_things_are_in_the_view(monkeypatch):
    monkeypatch.setattr(unlabelled_views, "ERASE", 0)
    monkeypatch.setattr(unlabelled_views, "BLUR", 0)
    pixels = np.full((120, 180, 3), 90, np.uint8)
    pixels[30:60, 100:140] = 255
    corners = torch.tensor([[100 / 180, 30 / 120, 1], [140 / 180, 60 / 120, 1]])
    view, seen, ways = StudentView(TrainTransform(EVERYTHING)), 0, set()
    for seed in range(40):
        result, way = view(Image.fromarray(pixels), size=128, seed=seed)
        moved = corners @ way.T
        low, high = (128 * side.clamp(0, 1) for side in (moved.amin(0), moved.amax(0)))
        bright = (result[0] > 0.65).nonzero()
        ways.add(tuple(way.sign().flatten().tolist()))
        if len(bright):
            seen += 1
            found = torch.cat((bright.amin(0).flip(0), bright.amax(0).flip(0) + 1)).float()
            torch.testing.assert_close(found, torch.cat((low, high)), rtol=0, atol=0.75)
        else:
            assert ((high - low) < 1).any()
    assert seen > 30
    assert len(ways) > 8  # mirrored and turned in all directions


def test_views_are_functions_of_the_seed_and_leave_the_generator_alone():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8))
    view = StudentView(TrainTransform(AugmentConfig()))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again, other = (view(image, size=64, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    weak, way = view(image, size=64, seed=5, strong=False)
    assert way.abs().sum() == pytest.approx(2 if way[0, 0] > 0 else 3)  # at most mirrored
    assert weak.shape == (3, 64, 64)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")

    def records(first, count):
        made = []
        for number in range(first, first + count):
            path = folder / f"{number}.png"
            Image.fromarray(np.random.default_rng(number).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(path)
            boxes = np.array([[5, 5, 40, 40]], np.float32)
            made.append(ImageRecord(path, number, 70, 50, boxes, np.zeros(1, np.int64), np.zeros(1, bool), boxes[:, 0]))
        return made

    return [DetectionData("toy", "train", ["a"], [1], records(*span), []) for span in ((0, 5), (10, 7))]


def sampler(length=5, batch_size=5, views=3, **options):
    return UnlabelledSampler(length, batch_size, unlabelled=7, views=views, **({"seed": 1, "base_size": 64} | options))


def test_unlabelled_images_come_in_whole_passes_shared_out_over_ranks():
    ranks = [sampler(rank=rank, world=2) for rank in range(2)]
    images = []
    for epoch in range(14):
        for both in zip(*(one.epoch(epoch) for one in ranks), strict=True):
            for keys in both:
                assert [key.index < 5 for key in keys] == [True] * 2 + [False] * 6
                student, teacher = keys[2:5], keys[5:]
                assert [key.index + 7 for key in student] == [key.index for key in teacher]
                assert not any(key.strong for key in teacher)
                images += [(key.epoch, key.index - 5) for key in student]
    assert len(images) == 14 * 2 * 3  # epochs of one batch, ranks, views
    assert images[:70] == list(dict.fromkeys(images))[:70]
    for number in range(12):
        assert sorted(image for pass_, image in images if pass_ == number) == list(range(7))


def test_ranks_together_have_the_images_that_one_has():
    whole = sampler(50, 10, 6)
    ranks = [sampler(50, 5, 3, rank=rank, world=2) for rank in range(2)]
    for epoch in range(3):
        for keys, *parts in zip(whole.epoch(epoch), *(one.epoch(epoch) for one in ranks), strict=True):
            assert [key for part in parts for key in part[:2]] == keys[:4]
            assert [key for part in parts for key in part[2:5]] == keys[4:10]


def test_all_labelled_images_are_shown_in_time():
    """Three places in five are taken, other ones in each epoch."""
    one = sampler(50)
    shown = [key.index for epoch in range(20) for keys in one.epoch(epoch) for key in keys[:2]]
    assert len(shown) == 20 * 20
    assert set(shown) == set(range(50))


def test_a_resumed_epoch_has_the_batches_that_were_left_and_images_join_at_their_place():
    one = sampler(12)
    whole = [list(one.epoch(epoch)) for epoch in range(3)]
    assert list(sampler(12).epoch(2, start=5)) == whole[2][1:]
    one.joined = lambda place: place >= 10
    assert [len(keys) for keys in one.epoch(0)] == [5, 5, 8]
    assert next(iter(one.epoch(0, start=10))) == whole[0][2]


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_through_workers(sets, workers):
    labelled, unlabelled = sets
    transform = TrainTransform(AugmentConfig())
    both = WithUnlabelled(DetectionDataset(labelled, transform, 1), unlabelled, StudentView(transform))
    loader = build_loader(both, sampler(), workers)
    try:
        batch = next(iter(loader.epoch(0)))
    finally:
        loader.close()
    keys = next(iter(sampler().epoch(0)))
    plain = DetectionDataset(unlabelled, None, 1)
    assert batch.indices == [key.index for key in keys]
    assert [target.view is not None for target in batch.targets] == [False] * 2 + [True] * 3 + [False] * 3
    for place in range(5, 8):
        pixels = plain[keys[place - 3].__class__(0, batch.indices[place] - 12, 64, strong=False)][0]
        assert torch.equal(batch.images[place], pixels)
        assert not torch.equal(batch.images[place - 3], pixels)
