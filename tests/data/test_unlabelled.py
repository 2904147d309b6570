from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from nextdetr.data.dataset import SampleKey
from nextdetr.data.unlabelled import UnlabelledDataset, _crop_box, find_unlabelled, random_crop
from nextdetr.errors import DataError
from tests.helpers import squares


def _picture(path, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng().integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_folders_are_searched_to_the_bottom_and_each_image_counts_once(tmp_path):
    wanted = [_picture(tmp_path / name) for name in ("a/1.png", "a/b/2.jpg", "c/3.bmp")]
    _picture(tmp_path / "a" / ".hidden" / "4.png")
    _picture(tmp_path / "a" / ".5.png")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "a" / "6.png").write_bytes(b"broken")
    data = find_unlabelled([tmp_path / "a", tmp_path / "c", tmp_path / "a" / "b", wanted[2]])
    assert sorted(record.path for record in data.records) == sorted(wanted)
    assert [problem.file for problem in data.problems] == [str(tmp_path / "a" / "6.png")]
    assert all(len(record.boxes) == 0 for record in data.records)
    assert data.records[0].width == 40


def test_of_a_data_set_only_the_training_split_is_seen(tmp_path):
    folder = squares(tmp_path / "squares", images=3)
    data = find_unlabelled([str(folder)])
    assert {record.path.parent.name for record in data.records} == {"train"}
    assert len(data.records) == 3
    assert all(len(record.labels) == 0 for record in data.records)


def test_of_a_folder_that_is_being_annotated_all_images_are_seen(tmp_path):
    for name in ("a.png", "b.png", "sub/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    shape = {"label": "cat", "points": [[1, 2], [9, 8]], "shape_type": "rectangle"}
    (tmp_path / "a.json").write_text(json.dumps({"shapes": [shape], "imagePath": "a.png"}))
    assert [record.path.name for record in find_unlabelled([tmp_path]).records] == ["a.png", "b.png", "c.png"]
    (tmp_path / "sub").rename(tmp_path / "val")  # held out
    assert [record.path.name for record in find_unlabelled([tmp_path / "val"]).records] == ["c.png"]


@pytest.mark.parametrize("what", ["missing", "empty", "broken", "nothing"])
def test_what_cannot_be_used_is_named(tmp_path, what):
    folder = tmp_path / what
    if what != "missing":
        folder.mkdir()
    if what == "broken":
        (folder / "1.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match="nothing to pre-train" if what == "nothing" else what):
        find_unlabelled([] if what == "nothing" else [folder])


def test_a_picture_of_a_phone_gives_itself(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.open(_picture(tmp_path / "a.png"))).save(tmp_path / "a.heic")
    assert [record.width for record in find_unlabelled([tmp_path / "a.heic"]).records] == [40]


def test_crops_have_the_permitted_area_and_shape_and_depend_on_the_key_alone(tmp_path):
    generator = np.random.default_rng()
    areas = []
    for _ in range(300):
        left, top, right, bottom = _crop_box(400, 300, generator, 0.2)
        assert 0 <= left < right <= 400
        assert 0 <= top < bottom <= 300
        areas.append((right - left) * (bottom - top) / 120_000)
        assert 0.73 < (right - left) / (bottom - top) < 1.36
    assert min(areas) > 0.19
    assert min(areas) < 0.35
    assert max(areas) > 0.75
    left, top, right, bottom = _crop_box(1000, 10, np.random.default_rng(), 0.99)
    assert (top, bottom, right - left) == (0, 10, 13)  # no crop of such a shape: the middle

    _picture(tmp_path / "1.png", (80, 60))
    dataset = UnlabelledDataset(find_unlabelled([tmp_path]), seed=3)
    first, again = (dataset[SampleKey(2, 0, 32)][0] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, dataset[SampleKey(3, 0, 32)][0])
    assert not torch.equal(first, UnlabelledDataset(dataset.data, seed=4)[SampleKey(2, 0, 32)][0])
    assert dataset[SampleKey(0, 0, 32, strong=False)][0].shape == (3, 32, 32)


def test_flip_and_crop_show_the_image():
    image = Image.fromarray(np.random.default_rng().integers(0, 256, (64, 64, 3), dtype=np.uint8))
    whole = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255
    crop = random_crop(image, 64, np.random.default_rng(0), crop_min=1.0, flip=0.0)
    mirrored = random_crop(image, 64, np.random.default_rng(0), crop_min=1.0, flip=1.0)
    torch.testing.assert_close(mirrored, crop.flip(2))
    exact = [random_crop(image, 64, np.random.default_rng(n), crop_min=1.0, flip=0.0) for n in range(20)]
    assert min(float((picture - whole).abs().max()) for picture in exact) < 0.5


def test_a_described_folder_is_not_taken_for_a_heap_of_images(tmp_path):
    folder = squares(tmp_path / "squares", images=2)
    (folder / "data.yaml").write_text("train: [\n")
    with pytest.raises(DataError, match=r"data\.yaml"):  # its mistake is told, and validation images are not learnt from
        find_unlabelled([folder])
    heap = tmp_path / "heap"
    _picture(heap / "train" / "1.png")
    _picture(heap / "val" / "2.png")
    (tmp_path / "heap.yaml").write_text("path: heap\ntrain: train\nval: val\nnames: [thing]\n")
    with pytest.raises(DataError, match=r"heap\.yaml describes this folder"):
        find_unlabelled([heap])
    assert [record.path.name for record in find_unlabelled([heap / "train"]).records] == ["1.png"]


def test_large_images_are_shrunk_as_far_as_the_smallest_crop_allows(tmp_path):
    data = find_unlabelled([_picture(tmp_path / "large.png", (400, 300))])
    dataset = UnlabelledDataset(data, shrink_to=100, cache_bytes=2**20)
    pixels, _, _ = dataset[SampleKey(0, 0, 64)]
    assert pixels.shape == (3, 64, 64)
    assert dataset.read(0).size == (133, 100)


def test_folder_of_images_may_be_a_dot(tmp_path, monkeypatch):
    _picture(tmp_path / "photos" / "a.png", (80, 60))
    monkeypatch.chdir(tmp_path / "photos")
    for source in (".", "../photos/../photos"):
        assert [record.path.name for record in find_unlabelled([source]).records] == ["a.png"]
    (tmp_path / "photos.yaml").write_text("format: coco\nroot: photos\ntrain: {annotations: a.json}\n")
    with pytest.raises(DataError, match=r"photos\.yaml describes this folder as a data set"):
        find_unlabelled(["."])
