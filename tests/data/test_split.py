"""Without val, a part of train is held out: by seed, with similar images on one side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from nextdetr.data.records import DetectionData, ImageRecord
from nextdetr.data.split import load_split_off, split_off
from nextdetr.errors import DataError
from tests.pictures import scene

from .files import make_yolo, write_text

SIZE = 64


def picture(seed: int) -> np.ndarray:
    """A scene of large patches, as photographs have them, unlike those of other seeds."""
    cells = np.random.default_rng(seed).integers(0, 255, (8, 8), dtype=np.uint8)
    return np.kron(cells, np.ones((SIZE // 8, SIZE // 8), dtype=np.uint8))


def frame(seed: int, number: int) -> np.ndarray:
    """The scene with a small thing in it that moves, and a little more light."""
    pixels = np.clip(picture(seed).astype(np.int64) + 2 * number, 0, 255).astype(np.uint8)
    pixels[4 * number : 4 * number + 6, 30:36] = 255
    return pixels


def record(folder: Path, name: str, pixels: np.ndarray, labels=()) -> ImageRecord:
    path = folder / name
    Image.fromarray(pixels).save(path)
    count = len(labels)
    boxes = np.tile(np.array([1, 1, 9, 9], dtype=np.float32), (count, 1))
    return ImageRecord(path, name, SIZE, SIZE, boxes, np.array(labels, dtype=np.int64), np.zeros(count, bool), boxes[:, 0])


def data_of(records: list[ImageRecord], classes=("cat", "dog")) -> DetectionData:
    return DetectionData("set", "train", list(classes), list(range(len(classes))), records, [])


def names(data: DetectionData) -> list[str]:
    return [record.path.name for record in data.records]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> DetectionData:
    """Twenty scenes: one has five frames, one has two files of other sizes, one has three of Roboflow's copies."""
    folder = tmp_path_factory.mktemp("mixed")
    records = [record(folder, f"{number:02}.png", picture(number), [number % 2]) for number in range(17)]
    records += [record(folder, f"frame{number}.png", frame(100, number), [0]) for number in range(5)]
    records += [record(folder, "copy.png", picture(101)), record(folder, "copy.jpg", picture(101)[::2, ::2])]
    for number, turned in enumerate((picture(102), picture(102).T, picture(102)[::-1])):
        records.append(record(folder, f"x_png.rf.{'0123456789abcdef' * 2}{number}.jpg", np.ascontiguousarray(turned), [1]))
    return data_of(records)


def test_what_looks_alike_is_on_one_side(mixed):
    found = set()
    for seed in range(12):
        parts = split_off(mixed, 0.3, seed)
        train, val = names(parts.train), names(parts.val)
        assert sorted(train + val) == sorted(names(mixed))
        assert len(val) == 8
        assert (parts.train.split, parts.val.split, parts.val.classes) == ("train", "val", ["cat", "dog"])
        for start in ("frame", "copy", "x_png"):
            assert len({name in val for name in names(mixed) if name.startswith(start)}) == 1
        found.add(tuple(val))
        assert names(split_off(mixed, 0.3, seed).val) == val
    assert len(found) > 3
    assert parts.text == (
        "val: 8 of 27 images set aside from train (--split-off 0.3 --seed 11); 7 images like another, on "
        "the same side as that one"
    )


def test_mirrored_crops_are_on_the_side_of_their_picture(tmp_path):
    records = []
    for number in range(10):
        image = scene(number)
        records.append(record(tmp_path, f"{number}.png", np.asarray(image)))
        mirrored = ImageOps.mirror(image.crop((0, 0, image.width, round(0.85 * image.height))))
        records.append(record(tmp_path, f"{number}-copy.png", np.asarray(mirrored)))
    parts = split_off(data_of(records), 0.3, 0)
    assert len(parts.val.records) == 6
    assert {name.removesuffix("-copy.png").removesuffix(".png") for name in names(parts.val)}.isdisjoint(
        name.removesuffix("-copy.png").removesuffix(".png") for name in names(parts.train)
    )


def test_rare_classes_are_on_both_sides(tmp_path):
    labels = [[0]] * 18 + [[1]] * 2
    data = data_of([record(tmp_path, f"{number}.png", picture(number), found) for number, found in enumerate(labels)])
    for seed in range(8):
        parts = split_off(data, 0.25, seed)
        for part in (parts.train, parts.val):
            assert {int(label) for entry in part.records for label in entry.labels} == {0, 1}


def test_one_scene_is_parted_in_runs(tmp_path):
    data = data_of([record(tmp_path, f"{number:02}.png", frame(1, number % 12)) for number in range(24)])
    parts = split_off(data, 0.25, 0)
    numbers = [int(name[:2]) for name in names(parts.val)]
    assert numbers == list(range(numbers[0], numbers[0] + 6))
    assert "; 24 images look alike, as frames of one video do, and are split in blocks of their order" in parts.text


def test_smallest_sets(tmp_path):
    one = record(tmp_path, "1.png", picture(1))
    with pytest.raises(DataError, match="one image alone cannot be split"):
        split_off(data_of([one]), 0.2, 0)
    parts = split_off(data_of([one, record(tmp_path, "2.png", np.zeros((SIZE, SIZE), np.uint8))]), 0.99, 0)
    assert (len(parts.train.records), len(parts.val.records)) == (1, 1)


def test_part_of_a_data_set_is_read_by_name(tmp_path):
    path = make_yolo(tmp_path, dict.fromkeys("abcde", "0 0.5 0.5 0.2 0.2"))
    for number, image in enumerate(sorted((tmp_path / "images").rglob("*.jpg"))):
        Image.fromarray(picture(number)).save(image)
    train, val = (load_split_off(path, split, 0.4, 3) for split in ("train", "val"))
    assert (len(train.records), len(val.records), val.split) == (3, 2, "val")
    with pytest.raises(DataError, match="--split-off makes a val of train, and no test; leave it out"):
        load_split_off(path, "test", 0.4, 3)
    write_text(path, path.read_text() + "\nval: images/train\n")
    with pytest.raises(DataError, match=r"it has a val of its own; leave --split-off out"):
        load_split_off(path, "val", 0.4, 3)
