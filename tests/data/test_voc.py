from __future__ import annotations

import time

import numpy as np
import pytest
from PIL import Image

from nextdetr.data.sources import available_splits, load_data
from nextdetr.errors import DataError
from tests.data.files import kinds, make_image, make_voc, object_xml, write_text, write_xml


def test_boxes_classes_and_background(tmp_path):
    objects = {
        "a": object_xml("dog", (5, 6, 25, 36), "<difficult>1</difficult>\n")
        + object_xml("cat", ("1.5", " 2 ", "60", "40")),
        "b": "",
        "c": object_xml("person", (1, 1, 9, 9), "<part><name>head</name><bndbox><xmin>2</xmin></bndbox></part>\n"),
    }
    root = make_voc(tmp_path / "set", "abc", [("train", "ba"), ("val", "c")], objects)
    data = load_data(root, "train", on_bad_data="error")
    assert (data.name, data.split, data.classes, data.category_ids) == ("set", "train", ["dog", "cat", "person"], [0, 1, 2])
    assert [record.image_id for record in data.records] == ["b", "a"]
    assert len(data.records[0].labels) == 0
    np.testing.assert_array_equal(data.records[1].boxes, [[5, 6, 25, 36], [1.5, 2, 60, 40]])
    np.testing.assert_array_equal(data.records[1].areas, [600, 58.5 * 38])
    assert data.records[1].labels.tolist() == [0, 1]
    assert not data.records[1].crowd.any()
    val = load_data(root, "val", on_bad_data="error")
    assert val.classes == data.classes
    assert val.records[0].labels.tolist() == [2]


@pytest.mark.parametrize(
    ("text", "kind", "line"),
    [
        (object_xml("cat", (5, 6, 5, 6)), "box without area", 15),
        (object_xml("cat", (25, 6, 5, 36)), "box without area", 15),
        (object_xml("cat", (100, 6, 120, 36)), "box outside image", 15),
        (object_xml("cat", (5, 6, 65, 36)), "box partly outside image", 15),
        (object_xml("cat", ("nan", 6, 25, 36)), "box not finite", 15),
        (object_xml("cat", ("abc", 6, 25, 36)), "malformed box", 15),
        (object_xml("cat", ("", 6, 25, 36)), "malformed box", 15),
        ("<object>\n<name>cat</name>\n</object>\n", "malformed box", 13),
        ("<object>\n<name>cat</name>\n<bndbox><xmin>1</xmin></bndbox></object>\n", "malformed box", 15),
        (object_xml("", (5, 6, 25, 36)), "unknown class", 15),
    ],
)
def test_bad_object_is_named_by_line(tmp_path, text, kind, line):
    first = object_xml("cat", (1, 1, 9, 9))
    root = make_voc(tmp_path, "ab", [("train", "ab")], {"a": first + text})
    data = load_data(root, "train")
    assert kinds(data) == [kind]
    assert data.problems[0].file == str(root / "Annotations" / "a.xml")
    lines = (root / "Annotations" / "a.xml").read_text().split("\n")
    assert data.problems[0].where == f"line {line} (object 2)"
    assert lines[line - 1].startswith("<object>" if "<bndbox>" not in text else "<bndbox>")
    assert data.records[0].boxes[0].tolist() == [1, 1, 9, 9]
    assert len(data.records[0].boxes) == (2 if kind == "box partly outside image" else 1)
    with pytest.raises(DataError, match=rf"a\.xml: line {line} \(object 2\)"):
        load_data(root, "train", on_bad_data="error")


BOMB = "<!DOCTYPE lolz [<!ENTITY a 'ha'>" + "".join(
    f"<!ENTITY {chr(98 + n)} '{f'&{chr(97 + n)};' * 50}'>" for n in range(12)
) + "]>\n"  # fmt: skip


@pytest.mark.parametrize(
    ("content", "where", "part"),
    [
        (b"<annotation>\n<object>\n</annotation>", "line 3", "not valid XML (mismatched tag)"),
        (b"", "line 1", "not valid XML"),
        (b"\x00\x01\x02", "line 1", "not valid XML"),
        (b"<annotation>\n" + b"\xff" + b"</annotation>", "line 2", "not valid XML"),
        (b'<?xml version="1.0" encoding="no-such"?><annotation/>', "line 1", "not valid XML"),
        (b"<html>\n</html>", "line 1", "first element is html"),
        (BOMB.encode() + b"<annotation>&m;</annotation>", "line 1", "DOCTYPE"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd">\n<annotation/>', "line 1", "DOCTYPE"),
    ],
)
def test_unreadable_xml_drops_its_image(tmp_path, content, where, part):
    root = make_voc(tmp_path, "ab", [("train", "ab")])
    (root / "Annotations" / "a.xml").write_bytes(content)
    start = time.perf_counter()
    data = load_data(root, "train")
    assert time.perf_counter() - start < 5
    assert [record.image_id for record in data.records] == ["b"]
    assert kinds(data) == ["unreadable annotation file"]
    assert (data.problems[0].file, data.problems[0].where) == (str(root / "Annotations" / "a.xml"), where)
    assert part in data.problems[0].message


def test_xml_in_other_encodings(tmp_path):
    root = make_voc(tmp_path, "ab", [("train", "ab")])
    text = "<annotation>" + object_xml("größe", (1, 1, 9, 9)) + "</annotation>"
    (root / "Annotations" / "a.xml").write_bytes(b'<?xml version="1.0" encoding="iso-8859-1"?>' + text.encode("latin-1"))
    (root / "Annotations" / "b.xml").write_bytes(text.encode("utf-16"))
    data = load_data(root, "train", on_bad_data="error")
    assert data.classes == ["größe"]
    assert [len(record.labels) for record in data.records] == [1, 1]


def test_bad_lists_and_images(tmp_path):
    root = make_voc(tmp_path, "abcd", [("train", ("a", "b.jpg", "", "a", "gone", "c", "d"))])
    (root / "JPEGImages/c.jpg").unlink()
    (root / "JPEGImages/d.jpg").write_bytes((root / "JPEGImages/d.jpg").read_bytes()[:-300])
    write_text(root / "ImageSets/Main/val.txt", "\n")
    write_text(root / "ImageSets/Main/only_gone.txt", "gone\n")
    data = load_data(root, "train")
    assert [record.image_id for record in data.records] == ["a", "b"]
    assert [(p.kind, p.where) for p in data.problems] == [
        ("image listed twice", "line 4"), ("missing annotation file", "line 5"), ("missing image", ""),
        ("damaged image", ""),
    ]  # fmt: skip
    assert data.problems[0].file == str(root / "ImageSets/Main/train.txt")
    with pytest.raises(DataError, match=r"val\.txt: the split val is empty"):
        load_data(root, "val")
    with pytest.raises(DataError, match=r"only_gone\.txt: line 1: there is no .*gone\.xml"):
        load_data(root, "only_gone")


def test_splits(tmp_path):
    root = make_voc(tmp_path, "ab", [("val", "b"), ("train", "a"), ("trainval", "ab"), ("hard_val", "b")])
    write_text(root / "ImageSets/Main/cat_train.txt", "a  1\nb -1\n")
    assert available_splits(root) == ["train", "val", "hard_val", "trainval"]
    assert len(load_data(root, "trainval").records) == 2
    with pytest.raises(DataError, match="no split test; available: train, val, hard_val, trainval"):
        load_data(root, "test")


def test_folder_without_lists(tmp_path):
    root = make_voc(tmp_path, "ab", [])
    assert available_splits(root) == ["train"]
    assert [record.image_id for record in load_data(root, "train").records] == ["a", "b"]


def test_classes_are_mapped_by_name(tmp_path):
    root = make_voc(tmp_path, "ab", [("train", "ab")], {"a": object_xml("dog", (1, 1, 9, 9))})
    data = load_data(root, "train", classes=["fox", "cat"])
    assert (data.classes, data.category_ids) == (["fox", "cat"], [-1, 1])
    assert [record.labels.tolist() for record in data.records] == [[], [1]]
    assert kinds(data) == ["unknown class"]
    assert "dog" in data.problems[0].message
    with pytest.raises(DataError, match="none of the classes asked for"):
        load_data(root, "train", classes=["fox"])


def test_how_the_image_is_found(tmp_path):
    root = make_voc(tmp_path, "abc", [("train", ("a", "b", "c", "d.v2"))])
    make_image(root / "JPEGImages/a.png", (30, 20))
    (root / "JPEGImages/b.jpg").rename(root / "JPEGImages/other.jpg")
    (root / "JPEGImages/c.jpg").rename(root / "JPEGImages/c.JPEG")
    make_image(root / "JPEGImages/d.v2.jpg")
    write_xml(root / "Annotations/a.xml", filename="a.png", size=(30, 20))
    write_xml(root / "Annotations/b.xml", filename="C:\\photos\\other.jpg")
    write_xml(root / "Annotations/c.xml", filename="/home/someone/x.png", size=(0, 0))
    write_xml(root / "Annotations/d.v2.xml", filename="")
    data = load_data(root, "train", on_bad_data="error")
    assert [record.path.name for record in data.records] == ["a.png", "other.jpg", "c.JPEG", "d.v2.jpg"]


def test_declared_size_and_orientation(tmp_path):
    root = make_voc(tmp_path, "ab", [("train", "ab")])
    make_image(root / "JPEGImages/a.jpg", (80, 40))
    make_image(root / "JPEGImages/b.jpg", (60, 40), orientation=8)
    data = load_data(root, "train")
    assert [(r.width, r.height) for r in data.records] == [(80, 40), (40, 60)]
    assert kinds(data) == ["image of another size", "EXIF orientation ignored by annotations"]


@pytest.mark.shared_data
def test_bccd(shared_data):
    start = time.process_time()
    splits = {split: load_data(shared_data / "bccd", split) for split in ("train", "val", "test")}
    assert time.process_time() - start < 9  # 0.7 s on a quiet machine
    assert {split: len(data.records) for split, data in splits.items()} == {"train": 205, "val": 87, "test": 72}
    # 4,888 boxes, two of them without area
    boxes = {split: sum(len(record.labels) for record in data.records) for split, data in splits.items()}
    assert boxes == {"train": 2804, "val": 1137, "test": 945}
    totals = dict.fromkeys(("WBC", "RBC", "Platelets"), 0)
    for data in splits.values():
        assert data.classes == list(totals)
        for record in data.records:
            assert (record.width, record.height) == (640, 480)
            for label in record.labels:
                totals[data.classes[label]] += 1
    assert sum(totals.values()) == 4886
    assert totals["WBC"] == 372
    reported = [(p.file, p.where, p.kind) for split in ("train", "val", "test") for p in splits[split].problems]
    folder = shared_data / "bccd" / "Annotations"
    assert reported == [
        (str(folder / "BloodImage_00343.xml"), "line 55 (object 4)", "box without area"),
        (str(folder / "BloodImage_00338.xml"), "line 163 (object 13)", "box without area"),
    ]
    with pytest.raises(DataError, match=r"BloodImage_00343\.xml: line 55 \(object 4\)"):
        load_data(shared_data / "bccd", "train", on_bad_data="error")


def test_a_list_may_name_pictures_of_phones(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    image = make_voc(tmp_path, "ab", [("train", ["a.heic", "b"])]) / "JPEGImages" / "a.jpg"
    heif.from_pillow(Image.open(image)).save(image.with_suffix(".heic"))
    image.unlink()
    assert [record.path.name for record in load_data(tmp_path, "train").records] == ["a.heic", "b.jpg"]
