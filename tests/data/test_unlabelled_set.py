"""Which unlabelled images are used: none of val, test or train, under any name or encoding."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import yaml
from PIL import Image

from nextdetr.data.sources import load_data
from nextdetr.data.unlabelled_set import find_more
from nextdetr.errors import DataError
from nextdetr.preprocess import Reading


def scene(path, seed):
    """Large patches, as in photographs, so that a re-encoded copy is recognised."""
    cells = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.kron(cells, np.ones((16, 16, 1), dtype=np.uint8))).save(path)


def data_set(data):
    """A YOLO set of three images in each of its splits."""
    for split, first in (("train", 0), ("val", 10), ("test", 20)):
        for number in range(first, first + 3):
            scene(data / "images" / split / f"{number}.png", number)
            label = data / "labels" / split / f"{number}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("0 0.5 0.5 0.2 0.2\n")
    splits = {split: f"images/{split}" for split in ("train", "val", "test")}
    (data / "data.yaml").write_text(yaml.safe_dump({"path": str(data), **splits, "names": ["thing"]}))
    return data


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    data, more = data_set(folder / "data"), folder / "more"
    for number in range(30, 34):
        scene(more / f"{number}.png", number)
    shutil.copy(data / "images" / "train" / "0.png", more / "other.png")
    shutil.copy(data / "images" / "val" / "10.png", more / "deep.png")
    with Image.open(data / "images" / "val" / "11.png") as image:
        image.resize((64, 64)).save(more / "small.jpg", quality=40)
    with Image.open(data / "images" / "test" / "20.png") as image:
        image.point(lambda value: min(255, value + 12)).save(more / "brighter.png")
    return data, more


def found(data, *sources):
    path = str(data / "data.yaml")
    train = load_data(path, "train")
    return find_more([str(source) for source in sources], path, train, load_data(path, "val", classes=train.classes))


def test_what_is_scored_or_labelled_is_left_out_and_counted_in_a_line(given):
    data, more = given
    result = found(data, more)
    assert sorted(record.path.name for record in result.data.records) == ["30.png", "31.png", "32.png", "33.png"]
    assert result.left_out == {"val": 2, "test": 1, "train": 1}
    assert result.lines == [
        "unlabelled: 4 images; 4 of 8 left out, as they or near copies are labelled: 2 in val, 1 in test, 1 in train"
    ]
    assert all(len(record.labels) == 0 for record in result.data.records)
    assert (result.data.split, result.data.classes) == ("unlabelled", ["thing"])


def test_nothing_may_be_left(given):
    data, _ = given
    result = found(data, data / "images" / "test", data / "images" / "train")
    assert result.data.records == []
    assert result.lines[-1].startswith("unlabelled: 0 images; 6 of 6 left out")


def test_a_folder_that_is_not_there(given, tmp_path):
    with pytest.raises(DataError, match="there is no such file or folder to learn from without labels"):
        found(given[0], tmp_path / "gone")


def damage(path):
    """Spoil the pixels; beginning and end stay as they should be."""
    content = path.read_bytes()
    start = content.index(b"IDAT") + 4
    path.write_bytes(content[:start] + bytes(2) + content[start + 2 :])


def test_a_damaged_image_ends_no_run(given, tmp_path, monkeypatch):
    data, more = data_set(tmp_path / "data"), tmp_path / "more"
    shutil.copytree(given[1], more)
    damage(data / "images" / "test" / "21.png")
    damage(more / "31.png")
    shutil.copy(data / "images" / "test" / "21.png", more / "same.png")
    monkeypatch.setattr("nextdetr.data.check._DECODE_ALL", 0)  # as in a large set, of which only the headers are read
    result = found(data, more)
    assert sorted(record.path.name for record in result.data.records) == ["30.png", "32.png", "33.png"]
    told = "\n".join(result.lines)
    assert "unlabelled: 3 images; 4 of 7 left out" in told
    assert "1 image of test cannot be read (such as " in told
    assert "2 problems in the data: damaged image (2)" in told
    assert "31.png" in told


def test_a_photograph_that_exif_turns_is_known_by_what_it_shows(given, tmp_path):
    data, more = data_set(tmp_path / "data"), tmp_path / "more"
    scene(more / "upright.png", 40)
    with Image.open(more / "upright.png") as image:
        turned = Image.Exif()
        turned[0x0112] = 3
        image.rotate(180).save(data / "images" / "test" / "photo.jpg", quality=90, exif=turned)
    (data / "labels" / "test" / "photo.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    assert found(data, more).left_out == {"test": 1}


def test_greys_of_few_bits_are_compared_as_the_training_reads_them(tmp_path):
    data, more = data_set(tmp_path / "data"), tmp_path / "more"
    cells = np.kron(np.random.default_rng(50).integers(0, 256, (8, 8), dtype=np.uint16), np.ones((16, 16), np.uint16))
    Image.fromarray(cells).save(data / "images" / "test" / "grey.png")
    (data / "labels" / "test" / "grey.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    more.mkdir()
    Image.fromarray(np.ascontiguousarray(cells[::2, ::2])).save(more / "smaller.png")
    path = str(data / "data.yaml")
    train = replace(load_data(path, "train"), reading=Reading(bits=8))
    assert find_more([str(more)], path, train, load_data(path, "val", classes=train.classes)).left_out == {"test": 1}
