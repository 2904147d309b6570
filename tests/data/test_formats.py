"""Which format a path is recognised as, what is reported, and how another one is chosen."""

from __future__ import annotations

import pytest

from nextdetr.data.formats import FORMATS, open_source
from nextdetr.data.recognise import Glance
from nextdetr.data.sources import load_data
from nextdetr.data.unlabelled import find_unlabelled
from nextdetr.errors import DataError

from .files import box_entry, image_entry, make_image, make_voc, make_yolo, write_coco, write_text


def make_coco(root):
    make_image(root / "train" / "c.jpg")
    write_coco(root / "annotations" / "instances_train.json", [image_entry(1, "c.jpg")], [box_entry(1, 1, 2, [1, 2, 3, 4])])
    return root


@pytest.mark.parametrize("name", ["voc", "yolo", "yolo as a file", "coco", "roboflow", "yaml"])
def test_format_and_reason_are_told(tmp_path, name):
    root = tmp_path / "set"
    if name == "voc":
        path, line = make_voc(root), "voc: Annotations/, JPEGImages/"
    elif name.startswith("yolo"):
        file = make_yolo(root, {"a": "0 0.5 0.5 0.2 0.2"})
        path, line = file if "file" in name else root, "yolo: data.yaml"
    elif name == "coco":
        path, line = make_coco(root), "coco: annotations/instances_train.json"
    elif name == "roboflow":
        make_coco(root)
        (root / "annotations" / "instances_train.json").rename(root / "train" / "_annotations.coco.json")
        path, line = root, "coco: train/_annotations.coco.json"
    else:
        make_coco(root)
        path = write_text(tmp_path / "mine.yaml", "format: coco\nroot: set\n")
        line = "yaml: mine.yaml (format: coco)"
    assert load_data(path, "train").recognised == line
    assert find_unlabelled([path]).recognised == line


def test_of_several_coco_files_that_of_train_is_named(tmp_path):
    for split in ("test", "train2017", "val"):
        write_coco(tmp_path / "annotations" / f"instances_{split}.json", [], [])
    assert open_source(tmp_path).recognised == "coco: annotations/instances_train2017.json"


def test_of_two_formats_the_first_counts_and_the_other_can_be_chosen(tmp_path):
    root = make_coco(make_voc(tmp_path / "set"))
    data = load_data(root, "train")
    assert data.classes == ["cat"]
    assert data.recognised == (
        "voc: Annotations/, JPEGImages/; coco (annotations/instances_train.json) would also match: a dataset YAML with "
        "format: coco and root chooses it"
    )
    chosen = load_data(write_text(tmp_path / "mine.yaml", "format: coco\nroot: set\n"), "train")
    assert [record.labels.tolist() for record in chosen.records] == [[1]]
    make_yolo(root, {"y": "0 0.5 0.5 0.2 0.2"})
    write_text(tmp_path / "mine.yaml", "format: yolo\nroot: set\n")
    assert [record.path.name for record in load_data(tmp_path / "mine.yaml", "train").records] == ["y.jpg"]


def test_named_yaml_with_a_mistake_is_never_passed_over(tmp_path):
    root = make_coco(tmp_path / "set")
    write_text(root / "notes.yaml", "a: [")
    assert load_data(root, "train").recognised.startswith("coco: ")
    write_text(root / "data.yaml", "a: [")
    with pytest.raises(DataError, match=r"data\.yaml, line 1: not valid YAML"):
        load_data(root, "train")


def test_format_of_another_tool_can_be_chosen_and_its_classes_ordered(tmp_path):
    root = make_coco(tmp_path / "set")
    text = "a.jpg,60,40,{},1,2,3,4\n"
    write_text(
        root / "train.csv", "filename,width,height,class,xmin,ymin,xmax,ymax\n" + text.format("owl") + text.format("cat")
    )
    make_image(root / "a.jpg")
    assert "; csv (train.csv) would also match: a dataset YAML with format: csv" in load_data(root, "train").recognised
    yaml = write_text(tmp_path / "mine.yaml", "format: csv\nroot: set\nclasses: [cat, owl]\n")
    data = load_data(yaml, "train")
    assert (data.classes, data.records[0].labels.tolist()) == (["cat", "owl"], [1, 0])
    write_text(yaml, "format: csv\nroot: set\ntrain: {annotations: train.csv}\n")
    with pytest.raises(DataError, match="train names files, which is for coco, yolo, voc; a data set of the format csv"):
        load_data(yaml, "train")


def test_formats_have_names_of_their_own_and_fit_no_empty_folder(tmp_path):
    names = [kind.name for kind in FORMATS]
    assert len(set(names)) == len(names)
    empty = write_text(tmp_path / "set" / "empty.txt", "")
    for path in (empty, empty.parent):
        assert [kind.name for kind in FORMATS if kind.recognise(Glance(path))] == []
        with pytest.raises(DataError, match="expected a Pascal VOC folder"):
            open_source(path)
