from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nextdetr.data.sources import available_splits, load_data
from nextdetr.data.yolo import label_path
from nextdetr.errors import DataError
from tests.data.files import kinds, make_image, make_yolo, write_text


def test_boxes_classes_and_background(tmp_path):
    labels = {"a": "1 0.5 0.5 0.5 0.25\n0 0.1 0.2 0.1 0.1\n", "b": "", "c": None}
    data = load_data(make_yolo(tmp_path / "set", labels), "train", on_bad_data="error")
    assert (data.name, data.classes, data.category_ids) == ("set", ["cat", "dog"], [0, 1])
    a, b, c = data.records
    np.testing.assert_allclose(a.boxes, [[15, 15, 45, 25], [3, 6, 9, 10]], atol=1e-5)
    np.testing.assert_allclose(a.areas, [300, 24], rtol=1e-5)
    assert a.labels.tolist() == [1, 0]
    assert not a.crowd.any()
    assert len(b.labels) == len(c.labels) == 0
    assert [record.image_id for record in data.records] == [f"images/train/{name}.jpg" for name in "abc"]


def test_polygon_becomes_its_bounding_box(tmp_path):
    data = load_data(make_yolo(tmp_path, {"a": "0 0.5 0.1 0.9 0.5 0.2 0.75\n"}), "train", on_bad_data="error")
    np.testing.assert_allclose(data.records[0].boxes, [[12, 4, 54, 30]], atol=1e-5)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("0 0.5 0.5 0.2", "malformed label line"),
        ("0 0.5 0.5 0.2 0.2 1.9", "malformed label line"),
        ("0 0.5 0.5 0.2 0.2 0.9 0.1 0.4", "malformed label line"),
        ("cat 0.5 0.5 0.2 0.2", "malformed label line"),
        ("0 0,5 0.5 0.2 0.2", "malformed label line"),
        ("2 0.5 0.5 0.2 0.2", "unknown class"),
        ("9" * 40 + " 0.5 0.5 0.2 0.2", "unknown class"),
        ("-1 0.5 0.5 0.2 0.2", "unknown class"),
        ("0.5 0.5 0.5 0.2 0.2", "unknown class"),
        ("inf 0.5 0.5 0.2 0.2", "unknown class"),
        ("nan 0.5 0.5 0.2 0.2", "unknown class"),
        ("0 0.5 0.5 0 0.2", "box without area"),
        ("0 0.5 0.5 -0.1 0.2", "box without area"),
        ("0 1.5 0.5 0.2 0.2", "box outside image"),
        ("0 300 200 20 20", "box outside image"),
        ("0 nan 0.5 0.2 0.2", "box not finite"),
        ("0 0.1 0.1 nan 0.5 0.2 0.2", "box not finite"),
        ("0 0.5 0.5 inf 0.2", "box not finite"),
    ],
)
def test_bad_line_is_dropped_and_named(tmp_path, line, kind):
    yaml = make_yolo(tmp_path, {"a": f"0 0.5 0.5 0.2 0.2\n\n{line}\n1 0.5 0.5 0.4 0.4"})
    data = load_data(yaml, "train")
    assert kinds(data) == [kind]
    assert data.problems[0].file == str(tmp_path / "labels" / "train" / "a.txt")
    assert data.problems[0].where == "line 3"
    assert data.records[0].labels.tolist() == [0, 1]
    with pytest.raises(DataError, match=r"a\.txt: line 3"):
        load_data(yaml, "train", on_bad_data="error")


def test_box_that_sticks_out(tmp_path):
    data = load_data(make_yolo(tmp_path, {"a": "0 0.5 0.9 0.2 0.4\n0 0.5 0.9 0.2 0.21"}), "train")
    np.testing.assert_allclose(data.records[0].boxes[:, 3], [40, 40])
    assert [(p.kind, p.where) for p in data.problems] == [("box partly outside image", "line 1")]


def test_bytes_that_are_not_text(tmp_path):
    yaml = make_yolo(tmp_path, {"a": "0 0.5 0.5 0.2 0.2\n"})
    (tmp_path / "labels/train/a.txt").write_bytes(b"\xff\xfe\x00 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2\n")
    data = load_data(yaml, "train")
    assert kinds(data) == ["malformed label line"]
    data.problems[0].message.encode()
    assert len(data.records[0].labels) == 1


@pytest.mark.parametrize(
    ("names", "classes", "ids"),
    [
        ("names: [no, 7]", ["no", "7"], [0, 1]),
        ("names: {0: no, 1: yes}", ["no", "yes"], [0, 1]),
        ("names:\n  5: dog\n  '0': cat", ["cat", "dog"], [0, 5]),
        ("names: [katze, größe]\nnc: 2", ["katze", "größe"], [0, 1]),
    ],
)
def test_names(tmp_path, names, classes, ids):
    yaml = make_yolo(tmp_path, {"a": f"{ids[1]} 0.5 0.5 0.2 0.2"}, yaml=names + "\n")
    data = load_data(yaml, "train", on_bad_data="error")
    assert (data.classes, data.category_ids) == (classes, ids)
    assert data.records[0].labels.tolist() == [1]


@pytest.mark.parametrize("names", ["names: 3", "names: []", "names: {a: cat}", "names: [[cat]]", "names:"])
def test_unusable_names(tmp_path, names):
    with pytest.raises(DataError, match=r"data.yaml: names must be a list"):
        load_data(make_yolo(tmp_path, {"a": ""}, yaml=names + "\n"), "train")


def test_class_count_that_differs(tmp_path):
    data = load_data(make_yolo(tmp_path, {"a": ""}, yaml="names: [cat, dog]\nnc: 3\n"), "train")
    assert kinds(data) == ["class count differs"]


def test_classes_are_mapped_by_name(tmp_path):
    yaml = make_yolo(tmp_path, {"a": "1 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2"})
    data = load_data(yaml, "train", classes=["fox", "dog"])
    assert (data.classes, data.category_ids) == (["fox", "dog"], [-1, 1])
    assert data.records[0].labels.tolist() == [1]
    assert data.problems[0].where == "line 2"
    assert "0 (cat)" in data.problems[0].message


def test_keys_that_are_null_are_not_given(tmp_path):
    """A script writes None for a split that it does not have; a class may be called null."""
    rest = "val: null\ntest: ~\nkpt_shape: null\nnc: null\nmin_confidence: null\n"
    yaml = make_yolo(tmp_path, {"a": "1 0.5 0.5 0.2 0.2"}, yaml=f"names: [cat, null]\n{rest}")
    assert available_splits(yaml) == ["train"]
    assert load_data(yaml, "train", on_bad_data="error").classes == ["cat", "null"]


def test_label_path():
    assert label_path(Path("/x/images/a/images/b.c.jpg")) == Path("/x/images/a/labels/b.c.txt")
    assert label_path(Path("images/images.jpg")) == Path("labels/images.txt")
    assert label_path(Path("/x/photos/b.jpg")) == Path("/x/photos/b.txt")


def test_list_files_and_lists_of_folders(tmp_path):
    yaml = make_yolo(
        tmp_path,
        {"a": "0 0.5 0.5 0.2 0.2", "b": "", "c": ""},
        yaml="names: [cat]\nval: lists/val.txt\ntest: [extra, more]\n",
    )
    write_text(
        tmp_path / "lists/val.txt",
        f"images/train/b.jpg\n../images/train/a.jpg\n{tmp_path}/images/train/c.jpg\nimages/train/b.jpg\nimages/train/z.jpg\n",
    )
    data = load_data(yaml, "val")
    assert [record.path.name for record in data.records] == ["b.jpg", "a.jpg", "c.jpg"]
    assert [len(record.labels) for record in data.records] == [0, 1, 0]
    assert [(p.kind, p.where) for p in data.problems] == [("image listed twice", "line 4"), ("missing image", "")]
    assert "line 5" in data.problems[1].message
    make_image(tmp_path / "extra" / "x.PNG")
    make_image(tmp_path / "more" / "sub" / "y.jpg")
    write_text(tmp_path / "more" / "sub" / "y.txt", "0 0.5 0.5 0.2 0.2")
    data = load_data(yaml, "test", on_bad_data="error")
    assert [record.image_id for record in data.records] == ["extra/x.PNG", "more/sub/y.jpg"]
    assert [len(record.labels) for record in data.records] == [0, 1]


def test_list_relative_to_itself(tmp_path):
    yaml = make_yolo(tmp_path, {"a": ""}, yaml="names: [cat]\nval: lists/val.txt\n")
    make_image(tmp_path / "lists/images/q.jpg")
    write_text(tmp_path / "lists/labels/q.txt", "0 0.5 0.5 0.1 0.1")
    write_text(tmp_path / "lists/val.txt", "./images/q.jpg\n")
    assert len(load_data(yaml, "val", on_bad_data="error").records[0].labels) == 1


def test_roboflow_layout(tmp_path):
    for split in ("train", "valid"):
        make_image(tmp_path / split / "images" / "a.jpg")
        write_text(tmp_path / split / "labels" / "a.txt", "0 0.5 0.5 0.2 0.2")
    write_text(
        tmp_path / "data.yaml",
        "train: ../train/images\nval: ../valid/images\ntest:\nnames: ['cat']\nnc: 1\nroboflow: {a: b}\n",
    )
    assert available_splits(tmp_path) == ["train", "val"]
    for split in ("train", "val"):
        assert len(load_data(tmp_path, split, on_bad_data="error").records[0].labels) == 1
    with pytest.raises(DataError, match="no split test; available: train, val"):
        load_data(tmp_path, "test")


def test_path_of_another_machine_falls_back_to_the_folder_of_the_file(tmp_path):
    yaml = make_yolo(tmp_path, {"a": ""})
    write_text(yaml, yaml.read_text().replace("path: .", "path: /content/somewhere"))
    assert len(load_data(yaml, "train").records) == 1
    moved = write_text(tmp_path / "elsewhere" / "my.yaml", "path: ..\ntrain: images/train\nnames: [cat]\n")
    assert load_data(moved, "train").name == "my"


def test_label_file_without_image(tmp_path):
    yaml = make_yolo(tmp_path, {"a": ""})
    write_text(tmp_path / "labels/train/gone.txt", "0 0.5 0.5 0.2 0.2")
    write_text(tmp_path / "labels/train/classes.txt", "cat\n")
    data = load_data(yaml, "train")
    assert [(p.file, p.kind) for p in data.problems] == [(str(tmp_path / "labels/train/gone.txt"), "missing image")]


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("names: [cat]\ntrain: images/none\n", "train names images/none, which does not exist"),
        ("names: [cat]\ntrain: {a: b}\n", "train must be a folder"),
        ("names: [cat]\ntrain: nothing\n", "nothing: the split is empty; it holds no image"),
        ("names: [cat]\ntrain: nothing.txt\n", "nothing.txt: the split is empty; it lists no image"),
        ("names: [cat]\ntrain: bare/images\n", "none of 1 image has a label file"),
    ],
)
def test_unusable_split(tmp_path, yaml, message):
    (tmp_path / "nothing").mkdir()
    write_text(tmp_path / "nothing.txt", "\n")
    make_image(tmp_path / "bare/images/a.jpg")
    with pytest.raises(DataError) as caught:
        load_data(write_text(tmp_path / "data.yaml", yaml), "train")
    assert message in str(caught.value)


def test_unicode_and_modes(tmp_path):
    yaml = make_yolo(tmp_path / "größe 漢字", {"ä ö": "0 0.5 0.5 0.2 0.2"})
    make_image(tmp_path / "größe 漢字/images/train/палитра.png", mode="P")
    make_image(tmp_path / "größe 漢字/images/train/cmyk.jpg", mode="CMYK", orientation=6)
    data = load_data(yaml, "train", on_bad_data="error")
    assert [(r.path.name, r.width, r.height) for r in data.records] == [
        ("cmyk.jpg", 40, 60), ("ä ö.jpg", 60, 40), ("палитра.png", 60, 40),
    ]  # fmt: skip
