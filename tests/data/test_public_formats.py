"""CSV, NDJSON, KITTI, VisDrone and CrowdHuman; and the given sets of all other tools."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nextdetr.data.check import require_boxes
from nextdetr.data.sources import available_splits, load_data

from .cases import CAT, DOG, Case, H, W, check_case, rows, write

TF = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
OPEN_IMAGES = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
)

CSV = {
    "TensorFlow's, by the files' names": Case(
        "csv: train_labels.csv, val_labels.csv",
        {"train_labels.csv": f"{TF}a.jpg,60,40,cat,24,12,36,28\na.jpg,60,40,dog,12,16,18,24\n",
         "val_labels.csv": f"{TF}c.jpg,60,40,owl,1,2,3,4\n",
         "images/train/a.jpg": None, "images/train/b.jpg": None, "images/val/c.jpg": None},
        {"a.jpg": [CAT, DOG], "b.jpg": []}, ("image without annotations",), ("cat", "dog", "owl"), ("train", "val"),
    ),
    "Roboflow's": Case(
        "csv: train/_annotations.csv, valid/_annotations.csv",
        {"train/_annotations.csv": f"{TF}a.jpg,60,40,cat,24,12,36,28\r\n", "train/a.jpg": None,
         "valid/_annotations.csv": f"{TF}c.jpg,60,40,cat,1,2,3,4\r\n", "valid/c.jpg": None},
        {"a.jpg": [CAT]}, classes=("cat",), splits=("train", "val"),
    ),
    "splits that share a folder, whose other images are nobody's": Case(
        "csv: test.csv, train.csv",
        {"train.csv": f"{TF}a.jpg,60,40,cat,24,12,36,28\n", "test.csv": f"{TF}c.jpg,60,40,cat,1,2,3,4\n",
         "images/a.jpg": None, "images/b.jpg": None, "images/c.jpg": None},
        {"a.jpg": [CAT]}, ("image without annotations",), ("cat",), ("train", "test"),
    ),
    "Open Images'": Case(
        "csv: oidv6-train-annotations-bbox.csv",
        {"oidv6-train-annotations-bbox.csv": f"{OPEN_IMAGES}a,xclick,/m/1,1,0.4,0.6,0.3,0.7,0,0,0,0,0\n"
                                             "a,xclick,/m/2,1,0.2,0.3,0.4,0.6,0,0,1,0,0\n",
         "class-descriptions-boxable.csv": "/m/1,cat\n/m/2,dog\n/m/3,owl\n", "train/a.jpg": None},
        {"a": [CAT, ("dog crowd", *DOG[1:])]},
    ),
    "RetinaNet's": Case(
        "csv: annotations.csv",
        {"annotations.csv": "images/a.jpg,24,12,36,28,cat\nimages/b.jpg,,,,,\n", "classes.csv": "cat,0\n",
         "images/a.jpg": None,
         "images/b.jpg": None},
        {"images/a.jpg": [CAT], "images/b.jpg": []}, classes=("cat",),
    ),
    "paths of another computer": Case(
        "csv: train.csv",
        {"train.csv": f"{TF}C:\\data\\a.jpg,60,40,cat,24,12,36,28\nC:\\data\\b.jpg,60,40,cat,24,12,36,28\n",
         "images/a.jpg": None, "images/b.jpg": None},
        {"C:\\data\\a.jpg": [CAT], "C:\\data\\b.jpg": [CAT]}, ("path of another computer",), ("cat",),
    ),
    "what is wrong": Case(
        "csv: train.csv",
        {"train.csv": f"{TF}a.jpg,60,40,cat,24,12,36,28\na.jpg,60,40,cat\n,60,40,cat,1,2,3,4\na.jpg,60,40,,1,2,3,4\n"
                      "a.jpg,60,40,cat,x,2,3,4\n", "a.jpg": None},
        {"a.jpg": [CAT]}, ("malformed row",) * 4, ("cat",),
    ),
}  # fmt: skip

HEAD = {"type": "dataset", "task": "detect", "name": "set", "path": "src", "class_names": {"0": "cat", "1": "dog"}}


def entry(name: str, split="train", **annotations) -> dict:
    return {
        "type": "image",
        "file": name,
        "url": "https://x/y",
        "width": W,
        "height": H,
        "split": split,
        "annotations": annotations,
    }


NDJSON = {
    "boxes, segments, turned boxes and poses": Case(
        "ndjson: set.ndjson",
        {"set.ndjson": rows(HEAD, entry("a.jpg", boxes=[[0, 0.5, 0.5, 0.2, 0.4]]),
                            entry("b.jpg", segments=[[1, 0.2, 0.4, 0.3, 0.5, 0.25, 0.6]]),
                            entry("c.jpg", obb=[[1, 0.2, 0.4, 0.3, 0.4, 0.3, 0.6, 0.2, 0.6]]),
                            entry("d.jpg", pose=[[0, 0.5, 0.5, 0.2, 0.4, 0.1, 0.9, 2]]), entry("e.jpg"),
                            entry("f.jpg", split="val")),
         **{f"src/images/train/{name}.jpg": None for name in "abcde"}, "src/images/val/f.jpg": None},
        {"a.jpg": [CAT], "b.jpg": [DOG], "c.jpg": [DOG], "d.jpg": [CAT], "e.jpg": []}, splits=("train", "val"),
    ),
    "the file itself, images beside it, and what is wrong": Case(
        "ndjson: set.ndjson",
        {"set.ndjson": rows(HEAD, entry("a.jpg", boxes=[[0, 0.5, 0.5, 0.2, 0.4], [0, 0.5], ["x", 1, 1, 1, 1]]),
                            entry("", boxes=[]), entry("b.jpg", classification=[[0]])) + "[]\n{\n",
         "a.jpg": None, "b.jpg": None},
        {"a.jpg": [CAT], "b.jpg": []},
        ("malformed box", "malformed box", "malformed image entry", "annotation without a box")
        + ("malformed row",) * 2,
        path="set.ndjson",
    ),
    "no names": Case(
        "ndjson: set.ndjson", {"set.ndjson": rows({"type": "dataset"}, entry("a.jpg")), "a.jpg": None},
        "set.ndjson, line 1: class_names must map numbers to names",
    ),
}  # fmt: skip

KITTI_CAT, KITTI_DOG = (
    "cat 0.00 0 -1.5 24.00 12.00 36.00 28.00 1 1 1 1 1 1 0.1",
    "dog 0.00 0 -1.5 12 16 18 24 1 1 1 1 1 1 0.1",
)
DONT_CARE = "DontCare -1 -1 -10 1.00 2.00 9.00 9.00 -1 -1 -1 -1000 -1000 -1000 -10"

KITTI = {
    "training, with regions that nobody labelled": Case(
        "kitti: training/label_2/",
        {"training/label_2/000000.txt": f"{KITTI_CAT}\n{DONT_CARE}\n", "training/label_2/000001.txt": f"{KITTI_DOG}\n\n",
         "training/label_2/000002.txt": "", "training/image_2/000000.png": None, "training/image_2/000001.png": None,
         "training/image_2/000002.png": None, "training/image_2/000003.png": None, "testing/image_2/000000.png": None},
        {"000000": [CAT, ("cat crowd", 1, 2, 9, 9), ("dog crowd", 1, 2, 9, 9)], "000001": [DOG], "000002": []},
        ("image without annotations",),
    ),
    "lists": Case(
        "kitti: training/label_2/",
        {"training/label_2/000000.txt": KITTI_CAT, "training/label_2/000001.txt": f"{KITTI_DOG} 0.9\ndog 1 2\n",
         "training/image_2/000000.png": None, "training/image_2/000001.png": None,
         "ImageSets/train.txt": "000001\n000009\n",
         "ImageSets/val.txt": "000000\n"},
        {"000001": [DOG]}, ("malformed label line", "missing annotation file", "confidence in labels"),
        splits=("train", "val"),
    ),
}  # fmt: skip

VISDRONE_CLASSES = (
    "pedestrian", "people", "bicycle", "car", "van", "truck", "tricycle", "awning-tricycle", "bus", "motor",
)  # fmt: skip

VISDRONE = {
    "a folder a split": Case(
        "visdrone: VisDrone2019-DET-train/annotations/",
        {"VisDrone2019-DET-train/annotations/a.txt": "24,12,12,16,1,4,0,0\n12,16,6,8,0,10,0,0,\n1,2,3\n",
         "VisDrone2019-DET-train/images/a.jpg": None, "VisDrone2019-DET-train/images/b.jpg": None,
         "VisDrone2019-DET-val/annotations/c.txt": "1,2,3,4,1,1,0,0\n", "VisDrone2019-DET-val/images/c.jpg": None},
        {"a": [("car", *CAT[1:]), ("motor crowd", *DOG[1:])]},
        ("malformed label line", "image without annotations"), VISDRONE_CLASSES, ("train", "val"),
    ),
    "regions that count for no class": Case(
        "visdrone: annotations/",
        {"annotations/a.txt": "", "annotations/b.txt": "1,2,3,4,1,0,0,0\n5,6,7,8,1,11,0,0\n", "images/a.jpg": None,
         "images/b.jpg": None},
        {"a": [], "b": [(f"{name} crowd", *box) for box in ((1, 2, 4, 6), (5, 6, 12, 14)) for name in VISDRONE_CLASSES]},
        classes=VISDRONE_CLASSES,
    ),
}  # fmt: skip


def person(*fbox, tag="person", **extra) -> dict:
    return {"tag": tag, "fbox": list(fbox), "vbox": [0, 0, 1, 1], "hbox": [0, 0, 1, 1], "extra": extra, "head_attr": {}}


CROWDHUMAN = {
    "persons, ignored ones, and what is none": Case(
        "crowdhuman: annotation_train.odgt, annotation_val.odgt",
        {"annotation_train.odgt": rows(
            {"ID": "273271,1017c000ac1360b7", "gtboxes": [person(24, 12, 12, 16, occ=0), person(1, 2, 3, 4, ignore=1),
                                                          person(5, 6, 7, 8, tag="mask", ignore=1), person(1, 2)]},
            {"ID": "b", "gtboxes": []}, {"ID": "c"}),
         "annotation_val.odgt": rows({"ID": "d", "gtboxes": [person(1, 2, 3, 4)]}),
         "Images/273271,1017c000ac1360b7.jpg": None, "Images/b.jpg": None, "Images/d.jpg": None},
        {"273271,1017c000ac1360b7": [("person", *CAT[1:]), ("person crowd", 1, 2, 4, 6), ("person crowd", 5, 6, 12, 14)],
         "b": []},
        ("malformed box", "malformed row"), ("person",), ("train", "val"),
    ),
}  # fmt: skip

CASES = {
    f"{name}: {title}": case
    for name, cases in (
        ("csv", CSV), ("ndjson", NDJSON), ("kitti", KITTI), ("visdrone", VISDRONE), ("crowdhuman", CROWDHUMAN)
    )
    for title, case in cases.items()
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_set_is_read_as_its_tool_means_it(tmp_path, name):
    check_case(CASES[name], tmp_path / "test set")


def test_messages_name_file_and_line(tmp_path):
    wrong = {"csv": 3, "ndjson": 2, "crowdhuman": 1, "kitti": 2, "visdrone": 3}
    for name, line in wrong.items():
        case = next(
            case
            for title, case in CASES.items()
            if title.startswith(f"{name}:") and any("malformed" in k for k in case.kinds)
        )
        data = load_data(write(tmp_path / name, case), "train")
        problem = next(problem for problem in data.problems if "malformed" in problem.kind)
        assert (tmp_path / name) in Path(problem.file).parents
        assert problem.where.startswith(f"line {line}"), problem


RENAMED = {
    "crowdhuman": {"zebra": "person", "apple": "person", "traffic light": "person"},
    "visdrone": {"zebra": "pedestrian", "apple": "people", "traffic light": "bicycle"},
    "hf_imagefolder": {"zebra": "0", "apple": "1", "traffic light": "2"},
    "kitti": {"zebra": "zebra", "apple": "apple", "traffic light": "traffic_light"},
}
KEEP_CROWDS = ("crowdhuman", "visdrone")
GIVEN = (
    "cvat_xml", "labelme_json", "hf_imagefolder", "roboflow_csv", "csv_tf", "ultra_ndjson", "kitti", "visdrone",
    "crowdhuman",
)  # fmt: skip


def expected_of(name: str, truth: dict) -> dict[str, dict[tuple[int, int], list[tuple]]]:
    """Return split -> size of each picture -> its objects, sorted; the sizes tell the pictures apart."""
    expected: dict[str, dict[tuple[int, int], list[tuple]]] = {}
    for image in truth["images"]:
        if name == "kitti" and image["split"] != "train":  # it has no labels but those of training
            continue
        split = "train" if name == "labelme_json" else image["split"]
        objects = []
        for entry in image["anns"]:
            x, y, width, height = entry["bbox"]
            label = RENAMED.get(name, {}).get(entry["label"], entry["label"])
            if not (name in KEEP_CROWDS and entry["kind"] == "crowd"):
                objects.append((label, x, y, width, height))
        expected.setdefault(split, {})[image["width"], image["height"]] = sorted(objects)
    return expected


@pytest.mark.shared_data
@pytest.mark.parametrize("name", GIVEN)
def test_given_sets_of_other_tools(name, shared_data):
    path = shared_data.parent / "cases" / "datasets" / name
    if not path.is_dir():
        pytest.skip("the given sets are not here")
    expected = expected_of(name, json.loads((path.parent / "gt.json").read_text("utf-8")))
    assert sorted(available_splits(path)) == sorted(expected)
    for split, images in expected.items():
        data = load_data(path, split)
        found = {}
        for record in data.records:
            boxes = np.concatenate((record.boxes[:, :2], record.boxes[:, 2:] - record.boxes[:, :2]), axis=1).tolist()
            marked = zip(record.labels, boxes, record.crowd, strict=True)
            found[record.width, record.height] = sorted((data.classes[k], *box) for k, box, crowd in marked if not crowd)
        assert set(found) == set(images)
        for size, objects in images.items():
            assert [entry[0] for entry in found[size]] == [entry[0] for entry in objects]
            assert [entry[1:] for entry in found[size]] == [pytest.approx(entry[1:], abs=1.01) for entry in objects]
        require_boxes(data)
