"""``doctor --fix``: what is written has the same boxes, of one data set and of several."""

from __future__ import annotations

import shutil

import pytest
from PIL import ImageOps

import nextdetr
from nextdetr.data.sources import load_data
from tests.data.files import make_yolo, write_text

from .test_doctor import Coco, by_kind, picture


@pytest.fixture
def both(tmp_path):
    """Two sets: a copy within the first one, and an image in the second one's train that the first one keeps for val."""
    first, second = Coco(tmp_path / "first"), Coco(tmp_path / "second", classes=("dog", "bird"))
    for number in range(6):
        first.add("train", f"{number}.jpg", picture(number), (0, 20 + number, 20, 80, 80))
    first.add("train", "again.jpg", picture(5), (0, 25, 20, 80, 80))
    for number in range(4):
        first.add("val", f"{number}.jpg", picture(100 + number), (1, 20, 22 + number, 80, 80))
        second.add("train", f"{number}.jpg", picture(200 + number), (1, 24 + number, 21, 80, 80))
    second.add("train", "leak.jpg", ImageOps.mirror(picture(100)), (0, 10, 10, 50, 50))
    second.add("test", "leak.jpg", picture(101), (0, 12, 10, 50, 50))
    shutil.copy(first.write() / "train" / "5.jpg", first.folder / "train" / "again.jpg")
    second.write()
    return write_text(tmp_path / "both.yaml", "format: joined\nsets: [first, second]\n")


def images(data, split):
    return sorted(record.path.relative_to(data.parent).as_posix() for record in load_data(data, split).records)


def test_several_data_sets_are_fixed_each_by_a_yaml_of_its_own(both, tmp_path):
    clean = tmp_path / "clean.yaml"
    result = nextdetr.doctor(both, fix=clean)
    assert result.fixed == str(clean)
    assert sorted(path.name for path in tmp_path.glob("clean*")) == ["clean-1.yaml", "clean-2.yaml", "clean.yaml"]
    train = [f"first/train/{number}.jpg" for number in range(6)] + [f"second/train/{number}.jpg" for number in range(4)]
    assert images(clean, "train") == sorted(train)
    assert images(clean, "val") == [f"first/val/{number}.jpg" for number in (0, 2, 3)]  # one is in test
    assert images(clean, "test") == ["second/test/leak.jpg"]
    before, after = load_data(both, "train"), load_data(clean, "train")
    boxes = {record.path: (record.boxes.tolist(), record.labels.tolist()) for record in before.records}
    assert after.classes == before.classes == ["cat", "dog", "bird"]
    assert all(boxes[record.path] == (record.boxes.tolist(), record.labels.tolist()) for record in after.records)
    again = nextdetr.doctor(clean, fix=tmp_path / "second.yaml")
    assert by_kind(again).keys().isdisjoint({"image in two splits", "same file twice", "not fixed"})
    assert images(tmp_path / "second.yaml", "train") == sorted(train)


def test_no_file_of_one_of_several_sets_is_replaced(both, tmp_path):
    mine = write_text(tmp_path / "clean-2.yaml", "mine")
    result = nextdetr.doctor(both, fix=tmp_path / "clean.yaml")
    assert result.fixed is None
    assert "clean-2.yaml, for the images of " in by_kind(result)["not fixed"].message
    assert mine.read_text() == "mine"
    assert not (tmp_path / "clean.yaml").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_set_of_which_nothing_is_kept_is_left_out(both, tmp_path):
    leaks = Coco(tmp_path / "leaks")
    for number in range(4):
        leaks.add("train", f"{number}.jpg", ImageOps.mirror(picture(100 + number)), (0, 20 + number, 20, 80, 80))
    leaks.write()
    joined = write_text(tmp_path / "three.yaml", "format: joined\nsets: [first, leaks, second]\n")
    assert nextdetr.doctor(joined, fix=tmp_path / "clean.yaml").fixed is not None
    assert sorted(path.name for path in tmp_path.glob("clean-*")) == ["clean-1.yaml", "clean-3.yaml"]
    assert not any("leaks" in name for split in ("train", "val", "test") for name in images(tmp_path / "clean.yaml", split))


@pytest.mark.parametrize(
    ("row", "more"),
    [
        ("0 0.5 0.5 0.2 0.2 0.1 0.1 0.9 0.9\n", "kpt_shape: [2, 2]\n"),  # as a polygon it would be a box of 0.8
        ("0 0.5 0.5 0.2 0.2 0.9\n1 0.3 0.3 0.2 0.2 0.4\n", "min_confidence: 0.5\n"),
    ],
)
def test_what_a_data_yaml_says_of_its_rows_is_kept(tmp_path, row, more):
    for split, width in (("train", 60), ("val", 80)):
        make_yolo(tmp_path / "set", {"a": row}, split=split, size=(width, 40))
        make_yolo(tmp_path / "set", {"b": row}, split=split, size=(width + 8, 40))
    entries = "train: images/train\nval: images/val\nnames: [cat, dog]\n"
    data = write_text(tmp_path / "set" / "data.yaml", entries + more)
    result = nextdetr.doctor(data, fix=tmp_path / "clean.yaml")
    assert result.fixed is not None
    for split in ("train", "val"):
        found = [[r.boxes.tolist() for r in load_data(path, split).records] for path in (data, tmp_path / "clean.yaml")]
        assert found[0] == found[1] != []


def test_no_class_gets_another_name(tmp_path):
    """A dataset YAML counts its classes from 0, and this set from 1."""
    for split, width in (("train", 60), ("val", 80)):
        make_yolo(tmp_path / "set", {"a": "1 0.5 0.5 0.2 0.2\n"}, split=split, size=(width, 40))
    data = write_text(tmp_path / "set" / "data.yaml", "train: images/train\nval: images/val\nnames: {1: cat, 2: dog}\n")
    result = nextdetr.doctor(data, fix=tmp_path / "clean.yaml")
    assert result.fixed is None
    assert "write the data set with nextdetr convert first" in by_kind(result)["not fixed"].message
