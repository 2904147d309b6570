from __future__ import annotations

import json
import time

import numpy as np
import pytest

from nextdetr.data.coco import read_coco
from nextdetr.data.sources import available_splits, load_data
from nextdetr.errors import DataError
from tests.data.files import box_entry, image_entry, kinds, make_image, write_coco, write_text


@pytest.fixture
def root(tmp_path):
    for name in "abc":
        make_image(tmp_path / "images" / f"{name}.jpg")
    return tmp_path


IMAGES = [image_entry(10, "a.jpg"), image_entry(7, "b.jpg"), image_entry(99, "c.jpg")]


def read(root, images=IMAGES, annotations=(), categories=((1, "cat"), (2, "dog")), **options):
    write_coco(root / "annotations" / "instances_train.json", images, list(annotations), categories)
    return load_data(root, "train", **options)


def test_boxes_classes_and_ids(root):
    data = read(
        root,
        annotations=[
            box_entry(1, 7, 90, [5, 6, 20, 30], area=321.5),
            box_entry(2, 10, 0, [0.5, 1, 2, 3]),
            box_entry(3, 7, 0, [1, 1, 10, 10], area=0),
            box_entry(4, 7, 90, [0, 0, 60, 40], iscrowd=1, area=77),
        ],
        categories=((90, "zebra"), (0, "ant"), (13, "never seen")),
    )
    assert (data.classes, data.category_ids) == (["zebra", "ant", "never seen"], [90, 0, 13])
    assert [record.image_id for record in data.records] == [10, 7, 99]
    a, b, c = data.records
    np.testing.assert_array_equal(a.boxes, [[0.5, 1, 2.5, 4]])
    np.testing.assert_array_equal(b.boxes, [[5, 6, 25, 36], [1, 1, 11, 11], [0, 0, 60, 40]])
    np.testing.assert_array_equal(b.labels, [0, 1, 0])
    np.testing.assert_array_equal(b.crowd, [False, False, True])
    np.testing.assert_array_equal(b.areas, [321.5, 100, 77])
    assert a.areas.tolist() == [6]
    assert len(c.labels) == 0
    assert c.path == root / "images" / "c.jpg"
    assert data.problems == []


def test_ids_and_numbers_written_as_strings(root):
    data = read(
        root,
        images=[image_entry("10", "a.jpg"), image_entry(7, "b.jpg"), image_entry("c", "c.jpg")],
        annotations=[
            box_entry("x", 10, "1", ["5", "6", "20", "30"], area="50"),
            box_entry("y", "7", 2, [1, 1, 2, 2], iscrowd="1"),
            box_entry("z", "c", 2.0, [1, 1, 3, 3]),
        ],
        categories=(("1", "cat"), (2, "dog")),
    )
    assert data.category_ids == ["1", 2]  # as the file writes them: COCO's tools compare them so
    assert [record.labels.tolist() for record in data.records] == [[0], [1], [1]]
    assert data.records[0].boxes.tolist() == [[5, 6, 25, 36]]
    assert data.records[0].areas.tolist() == [50]
    assert data.records[1].crowd.tolist() == [True]
    assert data.problems == []


@pytest.mark.parametrize(
    ("entry", "kind", "part"),
    [
        (box_entry(5, 4242, 1, [1, 1, 2, 2]), "annotation of an unknown image", "4242"),
        (box_entry(5, [7], 1, [1, 1, 2, 2]), "annotation of an unknown image", "[7]"),
        (box_entry(5, 7, 3, [1, 1, 2, 2]), "unknown class", "category 3"),
        (box_entry(5, 7, {}, [1, 1, 2, 2]), "unknown class", "{}"),
        (box_entry(5, 7, 1, [1, 1, 2]), "malformed box", "[1, 1, 2]"),
        (box_entry(5, 7, 1, ["x", 1, 2, 2]), "malformed box", "'x'"),
        (box_entry(5, 7, 1, [[1], 1, 2, 2]), "malformed box", "[[1]"),
        (box_entry(5, 7, 1, None), "malformed box", "None"),
        ({"id": 5, "image_id": 7, "category_id": 1}, "malformed box", "None"),
        (box_entry(5, 7, 1, [1, 1, 0, 2]), "box without area", "(1, 1, 1, 3)"),
        (box_entry(5, 7, 1, [1, 1, -4, 2]), "box without area", "no area"),
        (box_entry(5, 7, 1, [100, 1, 4, 2]), "box outside image", "60x40"),
        (box_entry(5, 7, 1, [float("nan"), 1, 4, 2]), "box not finite", "nan"),
        (box_entry(5, 7, 1, [1, 1, float("inf"), 2]), "box not finite", "inf"),
        (box_entry(5, 7, 1, [1, None, 4, 2]), "box not finite", "nan"),
    ],
)
def test_bad_annotation_is_dropped_and_named(root, entry, kind, part):
    sound = [box_entry(1, 7, 1, [1, 1, 5, 5]), box_entry(2, 7, 2, [2, 2, 5, 5])]
    data = read(root, annotations=[sound[0], entry, sound[1]])
    assert kinds(data) == [kind]
    problem = data.problems[0]
    assert problem.file == str(root / "annotations" / "instances_train.json")
    assert problem.where == "annotation 5"
    assert part in problem.message
    assert data.records[1].boxes.tolist() == [[1, 1, 6, 6], [2, 2, 7, 7]]
    assert data.records[1].labels.tolist() == [0, 1]
    with pytest.raises(DataError, match="annotation 5"):
        load_data(root, "train", on_bad_data="error")


def test_place_of_a_bad_box_after_dropped_ones(root):
    entries = [box_entry(1, 4242, 1, [1, 1, 2, 2]), "text", box_entry(3, 7, 1, [1, 1, 0, 0])]
    entries.append({"image_id": 7, "category_id": 1, "bbox": [1, 1, 0, 1]})
    data = read(root, annotations=entries)
    assert [problem.where for problem in data.problems] == [
        "annotation number 2", "annotation 1", "annotation 3", "annotation number 3",
    ]  # fmt: skip


def test_bad_image_entries(root):
    images = [
        *IMAGES,
        image_entry(7, "d.jpg"),
        image_entry(8, "a.jpg"),
        image_entry(9, "gone.jpg"),
        {"id": 11},
        {"file_name": "a.jpg"},
        3,
    ]
    annotations = [box_entry(1, 8, 1, [1, 1, 5, 5]), box_entry(2, 9, 1, [1, 1, 5, 5]), box_entry(3, 7, 1, [1, 1, 5, 5])]
    data = read(root, images, annotations)
    assert [len(record.labels) for record in data.records] == [0, 1, 0]
    assert kinds(data) == [
        "malformed image entry", "malformed image entry", "malformed image entry", "duplicated image id",
        "image listed twice", "missing image",
    ]  # fmt: skip
    assert data.problems[3].where == "image 7"
    assert "b.jpg" in data.problems[3].message
    assert "first as image 10" in data.problems[4].message
    assert "1 box" in data.problems[5].message


def test_bad_categories(root):
    categories = [(1, "cat"), (1, "cow"), (2, "dog"), (5, "cat"), ("x7", "fox"), (None, "hen")]
    data = read(
        root, annotations=[box_entry(1, 7, 5, [1, 1, 5, 5]), box_entry(2, 7, "x7", [1, 1, 5, 5])], categories=categories
    )
    assert (data.classes, data.category_ids) == (["cat", "dog", "fox"], [1, 2, "x7"])
    assert data.records[1].labels.tolist() == [0, 2]
    assert kinds(data) == ["duplicated category", "duplicated category", "malformed category", "malformed category"]


def test_classes_are_mapped_by_name(root):
    annotations = [box_entry(1, 7, 1, [1, 1, 5, 5]), box_entry(2, 7, 2, [2, 2, 5, 5])]
    data = read(root, annotations=annotations, classes=["fox", "dog"])
    assert (data.classes, data.category_ids) == (["fox", "dog"], [-1, 2])
    assert data.records[1].labels.tolist() == [1]
    assert kinds(data) == ["unknown class"]
    with pytest.raises(DataError, match=r"none of the classes asked for \(fox, hen\); its own are cat, dog"):
        load_data(root, "train", classes=["fox", "hen"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [],\n "annotations": [,]}', "line 2, column 18: not valid JSON"),
        ("", "line 1, column 1: not valid JSON"),
        ("[]", "results"),
        ("3", "not a COCO file"),
        ('{"images": [], "annotations": []}', 'no list "categories"'),
        ('{"images": {}, "annotations": [], "categories": []}', 'no list "images"'),
        ('{"images": [], "annotations": [], "categories": []}', "the split train is empty"),
        ("[" * 100_000, "not valid JSON"),
        ("9" * 5000, "not valid JSON"),
    ],
)
def test_unreadable_file(tmp_path, text, message):
    write_text(tmp_path / "annotations" / "instances_train.json", text)
    with pytest.raises(DataError) as caught:
        load_data(tmp_path, "train")
    assert message in str(caught.value)
    assert str(tmp_path / "annotations" / "instances_train.json") in str(caught.value)


def test_file_with_a_byte_order_mark(root):
    path = write_coco(root / "annotations" / "instances_train.json", IMAGES, [])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(load_data(root, "train").records) == 3


@pytest.mark.parametrize(
    ("split", "annotation", "folder"),
    [
        ("train", "instances_train.json", "train"),
        ("train", "instances_train2017.json", "train2017"),
        ("train", "instances_train2017.json", "images/train2017"),
        ("train2017", "instances_train2017.json", "images/train"),
        ("train", "instances_train.json", "train2017"),
        ("val", "instances_valid.json", "valid"),
        ("val", "instances_val.json", "valid"),
        ("test", "instances_test.json", "images"),
        ("test", "test.json", ""),
    ],
)
def test_where_the_images_are_found(tmp_path, split, annotation, folder):
    write_coco(tmp_path / "annotations" / annotation, [image_entry(1, "größe 漢字.jpg")], [])
    write_text(tmp_path / "annotations" / "captions_train2017.json", "{}")
    make_image(tmp_path / "train" / "other.jpg")
    path = make_image(tmp_path / folder / "größe 漢字.jpg")
    data = load_data(tmp_path, split, on_bad_data="error")
    assert [record.path for record in data.records] == [path]
    assert data.split == split


def test_file_names_with_folders(tmp_path):
    path = make_image(tmp_path / "train" / "sub" / "a.jpg")
    for name in ("train/sub/a.jpg", "sub/a.jpg", "sub\\a.jpg"):
        write_coco(tmp_path / "annotations" / "instances_train.json", [image_entry(1, name)], [])
        assert load_data(tmp_path, "train").records[0].path == path


def test_two_years(tmp_path):
    for year in (2014, 2017):
        make_image(tmp_path / f"train{year}" / "a.jpg")
        write_coco(tmp_path / "annotations" / f"instances_train{year}.json", [image_entry(year, "a.jpg")], [])
    assert available_splits(tmp_path) == ["train2014", "train2017"]
    assert load_data(tmp_path, "train2014").records[0].image_id == 2014
    with pytest.raises(DataError, match="may be any of train2014, train2017"):
        load_data(tmp_path, "train")


def test_roboflow_folder(tmp_path):
    for number, split in enumerate(("train", "valid", "test")):
        make_image(tmp_path / split / "a.jpg")
        annotations = [box_entry(1, 0, 1, [1, 1, 2 + number, 2])]
        write_coco(tmp_path / split / "_annotations.coco.json", [image_entry(0, "a.jpg")], annotations)
    assert available_splits(tmp_path) == ["train", "val", "test"]
    for split, width in (("train", 2), ("val", 3), ("valid", 3), ("test", 4)):
        data = load_data(tmp_path, split, on_bad_data="error")
        assert data.records[0].boxes.tolist() == [[1, 1, 1 + width, 3]]
        assert data.records[0].path.parent.name == ("valid" if split == "val" else split)


def test_a_hundred_thousand_annotations_are_quick(tmp_path):
    images = [image_entry(number, f"{number}.jpg") for number in range(1, 5001)]
    annotations = [box_entry(n, 1 + n % 5000, 1 + n % 2, [1, 2, 3, 4.5], area=9) for n in range(100_000)]
    annotations[500]["bbox"] = [1, 2]
    path = tmp_path / "big.json"
    path.write_text(
        json.dumps(
            {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]}
        )
    )
    start = time.perf_counter()
    raw = read_coco(path, [tmp_path])
    assert time.perf_counter() - start < 8  # 0.7 s on a quiet machine
    assert raw.boxes.shape == (99_999, 4)
    assert raw.where(500) == (str(path), "annotation 501")
    assert [problem.kind for problem in raw.problems] == ["images not found", "malformed box"]


@pytest.mark.shared_data
def test_coco_tiny(shared_data):
    data = load_data(shared_data / "coco_tiny.yaml", "train", on_bad_data="error")
    content = json.loads((shared_data / "coco_tiny" / "annotations.json").read_text())
    assert len(data.records) == 80
    assert sum(len(record.labels) for record in data.records) == 705
    assert sum(int(record.crowd.sum()) for record in data.records) == 6
    assert data.classes == [category["name"] for category in content["categories"]]
    assert data.category_ids == [category["id"] for category in content["categories"]]
    assert (len(data.category_ids), data.category_ids[0], data.category_ids[-1]) == (80, 1, 90)
    by_image = {record.image_id: record for record in data.records}
    for image in content["images"]:
        record = by_image[image["id"]]
        mine = [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]
        assert [data.category_ids[label] for label in record.labels] == [entry["category_id"] for entry in mine]
        assert record.crowd.tolist() == [bool(entry["iscrowd"]) for entry in mine]
        expected = np.array([entry["bbox"] for entry in mine], dtype=np.float64).reshape(-1, 4)
        np.testing.assert_allclose(record.boxes[:, :2], expected[:, :2], atol=1e-3)
        np.testing.assert_allclose(record.boxes[:, 2:] - record.boxes[:, :2], expected[:, 2:], atol=2e-2)
        np.testing.assert_allclose(record.areas, [entry["area"] for entry in mine], rtol=1e-6)


@pytest.mark.shared_data
def test_facemask(shared_data):
    splits = {split: load_data(shared_data / "facemask.yaml", split) for split in ("train", "val")}
    assert {split: len(data.records) for split, data in splits.items()} == {"train": 542, "val": 135}
    assert sum(len(record.labels) for data in splits.values() for record in data.records) == 3106
    for data in splits.values():
        assert data.problems == []
        assert data.classes == ["mask_weared_incorrect", "with_mask", "without_mask"]
        assert data.category_ids == [0, 1, 2]
        assert data.name == "facemask"
    assert not {r.path for r in splits["train"].records} & {r.path for r in splits["val"].records}
