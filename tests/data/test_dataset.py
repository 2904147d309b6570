"""Samples by key, crowds, errors and the shared image cache."""

from __future__ import annotations

import multiprocessing
import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from nextdetr.data.cache import ImageCache, cache_bytes, shrunk_size
from nextdetr.data.dataset import DetectionDataset, SampleKey, sample_seed
from nextdetr.data.records import DetectionData, ImageRecord
from nextdetr.data.transforms import TrainTransform
from nextdetr.errors import DataError
from nextdetr.tensors import resize_to_tensor

KEY = SampleKey(epoch=0, index=0, size=64)


def make_data(folder, count=4, crowd=()):
    records = []
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (40 + number, 60, 3), dtype=np.uint8)).save(path)
        boxes = np.array([[5, 5, 30, 30], [20, 10, 55, 38]], np.float32)[: number % 3]
        labels = np.array([0, 1], np.int64)[: number % 3]
        is_crowd = np.array([number in crowd, False])[: number % 3]
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        records.append(ImageRecord(path, number, 60, 40 + number, boxes, labels, is_crowd, areas))
    return DetectionData("toy", "train", ["a", "b"], [1, 2], records, [])


def same(first, second):
    return (
        torch.equal(first[0], second[0])
        and torch.equal(first[1].boxes, second[1].boxes)
        and torch.equal(first[1].labels, second[1].labels)
        and first[2] == second[2]
    )


def test_plain_sample(tmp_path):
    data = make_data(tmp_path)
    dataset = DetectionDataset(data)
    assert len(dataset) == 4
    pixels, target, index = dataset[SampleKey(0, 2, 64)]
    assert index == 2
    assert torch.equal(pixels, resize_to_tensor(Image.open(data.records[2].path), 64))
    expected = torch.tensor([[17.5 / 60, 17.5 / 42, 25 / 60, 25 / 42], [37.5 / 60, 24 / 42, 35 / 60, 28 / 42]])
    assert torch.allclose(target.boxes, expected)
    assert target.labels.tolist() == [0, 1]
    assert dataset[SampleKey(0, 0, 64)][1].boxes.shape == (0, 4)


@pytest.mark.parametrize("transform", [None, TrainTransform()])
def test_crowds_are_not_targets(tmp_path, transform):
    dataset = DetectionDataset(make_data(tmp_path, crowd=(2,)), transform)
    for epoch in range(5):
        assert 0 not in dataset[SampleKey(epoch, 2, 64)][1].labels.tolist()


def test_a_sample_depends_on_seed_epoch_index_and_copy_alone(tmp_path):
    data = make_data(tmp_path)
    first, second = (DetectionDataset(data, TrainTransform(), seed=3) for _ in range(2))
    key = SampleKey(4, 2, 64)
    expected = first[key]
    for other in range(4):  # what was asked before does not matter
        second[SampleKey(1, other, 96)]
    torch.manual_seed(99)
    assert same(second[key], expected)
    assert not same(DetectionDataset(data, TrainTransform(), seed=4)[key], expected)
    assert not same(first[SampleKey(5, 2, 64)], expected)
    assert not same(first[SampleKey(4, 2, 64, copy=1)], expected)


def test_seeds_do_not_collide():
    keys = [SampleKey(e, i, 64, copy=c) for e in range(10) for i in range(100) for c in range(2)]
    assert len({sample_seed(seed, key) for seed in range(3) for key in keys}) == 3 * len(keys)
    assert sample_seed(0, KEY) == sample_seed(0, SampleKey(0, 0, 320, strong=False))


def test_unreadable_image_is_named(tmp_path):
    data = make_data(tmp_path)
    data.records[1].path.write_bytes(data.records[1].path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"1\.png"):
        DetectionDataset(data)[SampleKey(0, 1, 64)]


def test_cache_changes_nothing_and_spares_the_files(tmp_path):
    data = make_data(tmp_path)
    plain, cached = DetectionDataset(data, TrainTransform()), DetectionDataset(data, TrainTransform(), cache_bytes=10**6)
    assert plain.cache is None
    assert cached.cache is not None
    keys = [SampleKey(0, index, 64) for index in range(4)]
    expected = [plain[key] for key in keys]
    assert all(same(cached[key], value) for key, value in zip(keys, expected, strict=True))
    for record in data.records:
        record.path.unlink()
    assert all(same(cached[key], value) for key, value in zip(keys, expected, strict=True))


def test_cache_is_all_or_nothing(tmp_path):
    data = make_data(tmp_path)
    needed = sum(3 * r.width * r.height + 1 for r in data.records)
    assert DetectionDataset(data, cache_bytes=needed - 1).cache is None
    assert DetectionDataset(data, cache_bytes=needed).cache is not None
    assert ImageCache.for_records([], 10**9) is None


def test_cache_refuses_an_image_of_another_size():
    cache = ImageCache([(4, 3), (2, 2)])
    assert cache.get(1) is None
    cache.put(0, np.zeros((9, 9, 3), np.uint8))
    assert cache.get(0) is None
    cache.put(1, np.full((2, 2, 3), 7, np.uint8))
    assert cache.get(0) is None
    assert (cache.get(1) == 7).all()
    assert pickle.loads(pickle.dumps(cache)).get(1) is None  # spawned processes start with an empty one


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_forked_processes_share_the_cache():
    cache = ImageCache([(4, 3)])
    worker = multiprocessing.get_context("fork").Process(target=cache.put, args=(0, np.full((3, 4, 3), 9, np.uint8)))
    worker.start()
    worker.join(30)
    assert worker.exitcode == 0
    assert (cache.get(0) == 9).all()


def test_shrunk_images_keep_their_shape_and_their_boxes_place(tmp_path):
    """The reference is the same image, shrunk by hand and written to a file of its own."""
    data = make_data(tmp_path)
    shrunk = DetectionDataset(data, shrink_to=20)
    for index, record in enumerate(data.records):
        image, boxes, _, _ = shrunk.source(index)
        assert image.size == (round(60 * 20 / record.height), 20)
        scale = np.array([image.width / record.width, image.height / record.height] * 2)
        assert torch.allclose(boxes, torch.from_numpy(record.boxes * scale).float())
        expected = resize_to_tensor(Image.open(record.path).resize(image.size, Image.Resampling.BILINEAR), 32)
        pixels, target, _ = shrunk[SampleKey(0, index, 32)]
        assert torch.equal(pixels, expected)
        assert torch.allclose(target.boxes, DetectionDataset(data)[SampleKey(0, index, 32)][1].boxes, atol=1e-6)


def test_a_limit_above_the_images_changes_nothing(tmp_path):
    data = make_data(tmp_path)
    plain, limited = DetectionDataset(data, TrainTransform()), DetectionDataset(data, TrainTransform(), shrink_to=43)
    assert all(same(plain[SampleKey(1, index, 64)], limited[SampleKey(1, index, 64)]) for index in range(4))


@pytest.mark.parametrize("transform", [None, TrainTransform()])
def test_shrunk_samples_are_the_same_with_and_without_memory(tmp_path, transform):
    data = make_data(tmp_path)
    needed = cache_bytes([(record.width, record.height) for record in data.records], 25)
    without, within = (DetectionDataset(data, transform, shrink_to=25, cache_bytes=room) for room in (0, needed))
    assert without.cache is None
    assert within.cache is not None
    assert DetectionDataset(data, transform, cache_bytes=needed).cache is None  # whole, they would not fit
    keys = [SampleKey(epoch, index, 32) for epoch in range(2) for index in range(4)]
    expected = [without[key] for key in keys]
    assert all(same(within[key], value) for key, value in zip(keys, expected, strict=True))
    assert all(within.cache.get(index) is not None for index in range(4))
    for record in data.records:
        record.path.unlink()
    assert all(same(within[key], value) for key, value in zip(keys, expected, strict=True))


@pytest.mark.parametrize(
    ("size", "limit", "wanted"),
    [((4000, 3000), 640, (853, 640)), ((3000, 4000), 640, (640, 853)), ((640, 480), 640, (640, 480)),
     ((9000, 2), 1, (4500, 1)), ((640, 480), None, (640, 480))],
)  # fmt: skip
def test_shrunk_sizes(size, limit, wanted):
    assert shrunk_size(*size, limit) == wanted
