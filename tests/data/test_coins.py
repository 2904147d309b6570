"""The quickstart's data: 24 coins found, labels that fit, disjoint splits, the same set from the same seed."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image
from torch import tensor
from torchvision.ops import box_iou

from nextdetr import files
from nextdetr.data import coin_scenes, coins
from nextdetr.errors import ConfigError, DataError

# Three coins measured by eye in an enlarged print of the photograph (xyxy): the first, the largest, the last.
BY_EYE = [[22, 33, 67, 74], [315, 155, 380, 219], [335, 247, 382, 289]]


@pytest.fixture(scope="module")
def coin_set(tmp_path_factory):
    return coins.make_coins(tmp_path_factory.mktemp("coins") / "set", train=12, val=6, test=2, image_size=192, seed=3)


def annotations(folder, split):
    return json.loads((folder / "annotations" / f"instances_{split}.json").read_text())


def test_photograph_has_24_coins_in_four_rows():
    image, boxes = coins.photograph()
    assert image.size == (384, 303)
    assert image.mode == "RGB"
    assert boxes.shape == (24, 4)
    assert boxes.dtype == np.float32
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= (384, 303)).all()
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sides.min() > 30
    assert sides.max() < 70
    assert (np.diff(boxes[:, 0].reshape(4, 6), axis=1) > 0).all()
    ious = box_iou(tensor(boxes), tensor(boxes)).fill_diagonal_(0)
    assert ious.max() == 0
    assert (box_iou(tensor(boxes[[0, 17, 23]]), tensor(BY_EYE).float()).diagonal() > 0.92).all()


def test_cutouts_are_coins():
    cutouts = coins.cut_coins()
    assert len(cutouts) == 24
    for cutout, box in zip(cutouts, coins.photograph()[1], strict=True):
        assert cutout.alpha.min() == 0
        assert cutout.alpha.max() == 1
        width, height = box[2:] - box[:2]
        # Area of an ellipse that fills the box, within what a worn coin differs from it.
        assert 0.85 < cutout.alpha.sum() / (np.pi / 4 * width * height) < 1.1
        assert cutout.pixels[cutout.alpha < 0.02].mean() > 90  # no dark ground beyond the edge


def test_splits_have_no_coin_in_common():
    train, val = coins.split_coins(0)
    assert len(train) == 16
    assert len(val) == 8
    assert sorted(train + val) == list(range(24))
    assert coins.split_coins(1)[0] != train
    first, second = coins._materials(0)
    shown = [{c.pixels.tobytes() for c in part.coins} for part in (first, second)]
    assert not shown[0] & shown[1]
    for left, right, name in zip(first.textures, second.textures, coins._TEXTURES, strict=True):
        assert np.array_equal(np.concatenate((left, right), axis=1), coins._read(name))


def test_folder_is_readable_coco(coin_set):
    sources = pytest.importorskip("nextdetr.data.sources", exc_type=ModuleNotFoundError)
    for split, count in (("train", 12), ("val", 6), ("test", 2)):
        data = sources.load_data(coin_set, split, on_bad_data="error")
        assert data.classes == ["coin"]
        assert len(data.records) == count
        assert not data.problems
        assert sum(len(record.boxes) for record in data.records) == len(annotations(coin_set, split)["annotations"])


def test_files_and_annotations(coin_set):
    for split, count in (("train", 12), ("val", 6), ("test", 2)):
        content = annotations(coin_set, split)
        assert content["categories"] == [{"id": 1, "name": "coin"}]
        assert len(content["images"]) == count
        for entry in content["images"]:
            with Image.open(coin_set / "images" / split / entry["file_name"]) as image:
                assert image.size == (192, 192)
                assert image.mode == "RGB"
        for entry in content["annotations"]:
            x, y, width, height = entry["bbox"]
            assert 0 <= x < x + width <= 192
            assert 0 <= y < y + height <= 192
            assert min(width, height) >= 4
            assert 0.3 * width * height < entry["area"] <= width * height
    assert [path.name for path in coin_set.parent.iterdir()] == ["set"]  # nothing temporary is left


def test_labels_bound_what_is_seen():
    """A white disc on black, half under a grey square: box and area follow the visible part."""
    axis = np.arange(41) - 20
    disc = (np.hypot(axis[None], axis[:, None]) <= 20).astype(np.float32)
    scene = coin_scenes.Scene(np.zeros((100, 100), np.float32), 0.4)
    scene.paste(coin_scenes.Cutout(np.full((41, 41), 255, np.float32), disc), np.array([50.0, 50.0]), coin=True)
    assert scene.labels()[0] == [[30, 30, 71, 71]]
    square = coin_scenes.Cutout(np.full((50, 50), 90, np.float32), np.ones((50, 50), np.float32))
    scene.paste(square, np.array([75.0, 50.0]), coin=False)
    (box,), (area,) = scene.labels()
    seen = scene.canvas == 255
    assert box == [30, 31, 50, 70]  # the disc's topmost and lowest pixel lie under the square
    assert area == seen.sum()
    scene.paste(square, np.array([25.0, 50.0]), coin=False)  # would hide the rest
    assert (scene.canvas == 255).sum() == seen.sum()
    scene.paste(
        coin_scenes.Cutout(np.full((41, 41), 255, np.float32), disc), np.array([-15.0, 50.0]), coin=True
    )  # nearly outside
    assert len(scene.labels()[0]) == 1


def test_same_seed_same_files(coin_set, tmp_path):
    again = coins.make_coins(tmp_path / "again", train=5, val=6, test=2, image_size=192, seed=3)
    for path in (again / "images").rglob("*.jpg"):
        assert path.read_bytes() == (coin_set / path.relative_to(again)).read_bytes()
    other = coins.make_coins(tmp_path / "other", train=1, val=0, test=0, image_size=192, seed=4)
    name = "images/train/train_00000.jpg"
    assert (other / name).read_bytes() != (coin_set / name).read_bytes()


def test_existing_folder_is_kept_or_refused(coin_set, tmp_path):
    changed = [path.stat().st_mtime_ns for path in sorted(coin_set.rglob("*"))]
    assert coins.make_coins(coin_set, train=12, val=6, test=2, image_size=192, seed=3) == coin_set
    assert [path.stat().st_mtime_ns for path in sorted(coin_set.rglob("*"))] == changed
    with pytest.raises(DataError, match="exists"):
        coins.make_coins(coin_set, train=12, val=6, test=2, image_size=192, seed=4)
    with pytest.raises(DataError, match="exists"):
        coins.make_coins(tmp_path)


def test_an_interrupted_set_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        (folder,) = tmp_path.iterdir()
        assert files._TEMPORARY.fullmatch(folder.name)  # what a killed process leaves is removed later
        raise KeyboardInterrupt

    monkeypatch.setattr(coins, "compose", fail)
    with pytest.raises(KeyboardInterrupt):
        coins.make_coins(tmp_path / "set", train=2, val=2, test=2)
    assert list(tmp_path.iterdir()) == []


def test_variety():
    """Over many images: some without coins, some crowded, dark and light grounds."""
    material = coins._materials(0)[0]
    images = [coin_scenes.compose(np.random.default_rng(k), 96, material) for k in range(120)]
    counts = np.array([len(boxes) for _, boxes, _ in images])
    assert 3 <= (counts == 0).sum() <= 20
    assert counts.max() > 15
    assert 5 < counts.mean() < 15
    levels = np.array([pixels.mean() for pixels, _, _ in images])
    assert levels.min() < 50
    assert levels.max() > 150


def test_without_scikit_image(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ConfigError, match=r"scikit-image.*pip install .*\[quickstart\]"):
        coins.photograph()


def test_another_picture_is_refused():
    with pytest.raises(DataError, match="0 coins"):
        coins._find_coins(np.full((303, 384), 80, np.float32))
