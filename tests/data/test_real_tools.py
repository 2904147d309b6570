"""Data sets of real tools that used to be misread silently, or refused with a misleading message."""

from __future__ import annotations

import json

import pytest

from nextdetr.data.convert import convert
from nextdetr.data.sources import available_splits, load_data
from nextdetr.errors import DataError

from .cases import CAT, DOG, Case, H, W, check_case, found_in, rows
from .files import kinds, make_image, make_yolo, object_xml, write_text, write_xml
from .test_public_formats import HEAD, KITTI_CAT, KITTI_DOG, OPEN_IMAGES, TF, entry

BOX = 'xtl="24" ytl="12" xbr="36" ybr="28"'


def cvat(name: str, attributes: str = "") -> str:
    return f'<annotations><image id="0" name="{name}" {attributes}><box label="cat" {BOX}/></image></annotations>'


def labelme(label: str, path: str) -> str:
    shape = {"label": label, "points": [[24, 12], [36, 28]], "shape_type": "rectangle"}
    return json.dumps({"shapes": [shape], "imagePath": path, "imageWidth": W, "imageHeight": H})


SETS = {
    "CVAT, files named after splits": Case(
        "cvat: train.xml, val.xml",
        {"train.xml": cvat("a.jpg"), "val.xml": cvat("b.jpg"), "images/a.jpg": None, "images/b.jpg": None},
        {"a.jpg": [CAT]}, classes=("cat",), splits=("train", "val"),
    ),
    "CVAT, folders named after splits, in which a subset counts more": Case(
        "cvat: train/annotations.xml, val/annotations.xml",
        {"train/annotations.xml": cvat("a.jpg"), "val/annotations.xml": cvat("b.jpg", 'subset="test"'),
         "train/images/a.jpg": None, "val/images/b.jpg": None},
        {"a.jpg": [CAT]}, classes=("cat",), splits=("train", "test"),
    ),
    "CVAT, a video named after a split": Case(
        "cvat: train.xml, val.xml",
        {"train.xml": cvat("a.jpg"), "images/a.jpg": None, "images/frame_000000.png": None,
         "val.xml": f'<annotations><track label="dog"><box frame="0" outside="0" {BOX}/></track></annotations>'},
        {"a.jpg": [CAT]}, splits=("train", "val"),
    ),
    "CVAT, one file that is called test": Case(
        "cvat: test.xml", {"test.xml": cvat("a.jpg"), "a.jpg": None}, {"a.jpg": [CAT]}, classes=("cat",),
    ),
    "NDJSON, another split's image of the same name": Case(
        "ndjson: set.ndjson",
        {"set.ndjson": rows(HEAD, entry("a.jpg", boxes=[[0, 0.5, 0.5, 0.2, 0.4]]),
                            entry("b.jpg", boxes=[[1, 0.25, 0.5, 0.1, 0.2]])),
         "images/train/a.jpg": None, "images/val/b.jpg": None},
        {"a.jpg": [CAT]}, ("missing image",),
    ),
    "CSV, another split's image of the same name": Case(
        "csv: train.csv, val.csv",
        {"train.csv": f"{TF}a.jpg,60,40,cat,24,12,36,28\nb.jpg,60,40,cat,24,12,36,28\n",
         "val.csv": f"{TF}b.jpg,60,40,cat,1,2,3,4\n", "train/a.jpg": None, "val/b.jpg": None},
        {"a.jpg": [CAT]}, ("missing image",), ("cat",), ("train", "val"),
    ),
    "Open Images, an image without a row": Case(
        "csv: train-annotations-bbox.csv",
        {"train-annotations-bbox.csv": f"{OPEN_IMAGES}a,xclick,/m/1,1,0.4,0.6,0.3,0.7,0,0,0,0,0\n",
         "class-descriptions.csv": "/m/1,cat\n", "train/a.jpg": None, "train/b.jpg": None},
        {"a": [CAT], "b.jpg": []}, ("image without annotations",), ("cat",),
    ),
    "Open Images, ids that several images have, which are not background": Case(
        "csv: train-annotations-bbox.csv",
        {"train-annotations-bbox.csv": OPEN_IMAGES + "".join(
            f"{name},xclick,cat,1,0.4,0.6,0.3,0.7,0,0,0,0,0\n" for name in ("a", "b", "c")),
         "train/a.jpg": None, "train/a.png": None, "images/b.jpg": None, "train/1/b.jpg": None, "train/2/b.jpg": None,
         "train/c.jpg": None, "train/d.jpg": None},
        {"c": [CAT], "train/d.jpg": []},
        ("ambiguous name", "ambiguous name", "image without annotations", "image without annotations", "missing image",
         "missing image"), ("cat",),
    ),
    "Open Images, masks and previews beside the folder of images": Case(
        "csv: boxes.csv",
        {"boxes.csv": OPEN_IMAGES + "".join(f"{name},xclick,cat,1,0.4,0.6,0.3,0.7,0,0,0,0,0\n" for name in ("a", "b")),
         "images/a.jpg": None, "masks/a.png": None, "images/1/b.jpg": None, "previews/b.jpg": None},
        {"a": [CAT], "b": [CAT]}, classes=("cat",),
    ),
    "CSV, fractions in place of pixels": Case(
        "csv: a.csv", {"a.csv": f"{TF}a.jpg,60,40,cat,0.4,0.3,0.6,0.7\na.jpg,60,40,dog,0.2,0.4,0.3,0.6\n", "a.jpg": None},
        {"a.jpg": [CAT, DOG]}, ("fractions in place of pixels",),
    ),
    "KITTI of datumaro: folders of splits, subfolders, a class of two words": Case(
        "kitti: train/label_2/",
        {"train/label_2/1/a.txt": f"{KITTI_CAT}\n{KITTI_CAT.replace('cat', 'traffic light')} 0.5\n",
         "train/image_2/1/a.jpg": None, "val/label_2/b.txt": KITTI_DOG, "val/image_2/b.jpg": None},
        {"1/a": [CAT, ("traffic light", *CAT[1:])]}, ("confidence in labels",), ("cat", "traffic light", "dog"),
        ("train", "val"),
    ),
    "KITTI of FiftyOne": Case(
        "kitti: labels/", {"labels/a.txt": KITTI_CAT, "data/a.jpg": None, "labels/b.txt": "", "data/b.jpg": None},
        {"a": [CAT], "b": []}, classes=("cat",),
    ),
    "KITTI of CVAT": Case(
        "kitti: default/label_2/", {"default/label_2/a.txt": KITTI_CAT, "default/image_2/a.jpg": None}, {"a": [CAT]},
        classes=("cat",),
    ),
    "Open Images, names of the labels in the folder of the boxes": Case(
        "csv: annotations/default-annotations-bbox.csv",
        {"annotations/default-annotations-bbox.csv": f"{OPEN_IMAGES}a,xclick,/m/1,1,0.4,0.6,0.3,0.7,0,0,-1,0,0\n",
         "annotations/class-descriptions.csv": "/m/1,cat\n", "images/default/a.jpg": None},
        {"a": [CAT]}, classes=("cat",),
    ),
    "YOLO of CVAT, subsets as they are called there": Case(
        "yolo: obj.data",
        {"obj.data": "classes = 2\nTrain = data/Train.txt\nValidation = data/Validation.txt\nnames = data/obj.names\n",
         "obj.names": "cat\ndog\n", "Train.txt": "data/obj_Train_data/a.jpg\n",
         "Validation.txt": "data/obj_Validation_data/b.jpg\n", "obj_Train_data/a.jpg": None,
         "obj_Train_data/a.txt": "0 0.5 0.5 0.2 0.4", "obj_Validation_data/b.jpg": None,
         "obj_Validation_data/b.txt": "1 0.25 0.5 0.1 0.2"},
        {"obj_Train_data/a.jpg": [CAT]}, splits=("train", "val"),
    ),
    "ultralytics' YOLO of CVAT, subsets as they are called there": Case(
        "yolo: data.yaml",
        {"data.yaml": "Train: Train.txt\nValidation: Validation.txt\nnames: {0: cat, 1: dog}\npath: .\n",
         "Train.txt": "images/Train/a.jpg\n", "Validation.txt": "images/Validation/b.jpg\n",
         "images/Train/a.jpg": None, "images/Train/other.jpg": None, "labels/Train/a.txt": "0 0.5 0.5 0.2 0.4",
         "images/Validation/b.jpg": None, "labels/Validation/b.txt": "1 0.25 0.5 0.1 0.2"},
        {"images/Train/a.jpg": [CAT]}, splits=("train", "val"),
    ),
    "YOLO with lists in other letters, or with a year": Case(
        "yolo: classes.txt",
        {"classes.txt": "cat\ndog\n", "Train.txt": "images/a.jpg\n", "val2017.txt": "images/b.jpg\n",
         "images/a.jpg": None, "labels/a.txt": "0 0.5 0.5 0.2 0.4", "images/b.jpg": None,
         "labels/b.txt": "1 0.25 0.5 0.1 0.2"},
        {"images/a.jpg": [CAT]}, splits=("train", "val"),
    ),
    "YOLO with a list that joins its splits": Case(
        "yolo: classes.txt",
        {"classes.txt": "cat\ndog\n", "trainval.txt": "images/train/a.jpg\nimages/val/b.jpg\n",
         "images/train/a.jpg": None, "labels/train/a.txt": "0 0.5 0.5 0.2 0.4", "images/val/b.jpg": None,
         "labels/val/b.txt": "1 0.25 0.5 0.1 0.2"},
        {"images/train/a.jpg": [CAT]}, splits=("train", "val"),
    ),
    "YOLO of another computer, val in the folder of train": Case(
        "yolo: data.yaml",
        {"data.yaml": "train: D:\\x\\images\nval: D:\\x\\images\\val\nnames: [cat, dog]\n", "images/a.jpg": None,
         "labels/a.txt": "0 0.5 0.5 0.2 0.4", "images/val/b.jpg": None, "labels/val/b.txt": "1 0.25 0.5 0.1 0.2"},
        {"images/a.jpg": [CAT], "images/val/b.jpg": [DOG]}, ("path of another computer",), splits=("train", "val"),
    ),
    "KITTI, and folders of the same splits without labels": Case(
        "kitti: train/label_2/",
        {"train/label_2/a.txt": KITTI_CAT, "train/image_2/a.jpg": None, "training/notes.txt": "",
         "val/label_2/b.txt": KITTI_DOG, "val/image_2/b.jpg": None, "validation/notes.txt": ""},
        {"a": [CAT]}, splits=("train", "val"),
    ),
    "folders of text files are no KITTI": Case("", {"labels/a.txt": "a cat", "data/a.jpg": None}, "not recognised"),
    "labelme, JSON files in a folder of their own": Case(
        "labelme: labels/a.json",
        {"labels/a.json": labelme("cat", "a.jpg"), "images/a.jpg": None, "images/b.jpg": None},
        {"images/a.jpg": [CAT]}, ("image without annotations",), ("cat",),
    ),
    "labelme, an image that has another JSON": Case(
        "labelme: one/a.json",
        {"one/a.json": labelme("cat", "a.jpg"), "one/a.jpg": None, "two/a.json": labelme("dog", "a.jpg")},
        {"one/a.jpg": [CAT]}, ("missing image",),
    ),
    "labelme, an image of another split": Case(
        "labelme: train/a.json",
        {"train/a.json": labelme("cat", "a.jpg"), "train/a.jpg": None, "train/b.json": labelme("dog", "b.jpg"),
         "val/b.jpg": None, "val/c.json": labelme("dog", "c.jpg"), "val/c.jpg": None},
        {"train/a.jpg": [CAT]}, ("missing image",), splits=("train", "val"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_set_is_read_as_its_tool_means_it(tmp_path, name):
    check_case(SETS[name], tmp_path)


COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": W, "height": H}],
    "categories": [{"id": 1, "name": "cat"}],
}


def coco(root, *boxes, **other):
    rows_ = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": list(box), "area": 1} for box in boxes]
    write_text(root / "set.json", json.dumps(COCO | {"annotations": rows_} | other))
    make_image(root / "a.jpg", (W, H))
    return root


def test_fractions_where_pixels_belong_are_refused(tmp_path):
    coco(tmp_path, (0.4, 0.3, 0.2, 0.4), (0.1, 0.1, 0.5, 0.5))
    with pytest.raises(DataError, match=r"all of its 2 boxes lie between 0 and 1 .*annotation 1\): these are fractions"):
        load_data(tmp_path, "train")


def test_a_single_pixel_is_no_fraction(tmp_path):
    assert found_in(load_data(coco(tmp_path, (0, 0, 1, 1)), "train")) == {"1": [("cat", 0, 0, 1, 1)]}


def test_pixels_where_fractions_belong_are_refused(tmp_path):
    write_text(tmp_path / "data.yaml", "train: images\nnames: [cat]\n")
    make_image(tmp_path / "images/a.jpg", (W, H))
    write_text(tmp_path / "labels/a.txt", "0 0.5 0.5 0.2 0.4\n0 30 20 12 16\n0 15 20 6 8\n")
    with pytest.raises(DataError, match=r"2 of 3 boxes are far larger than 1 .*a.txt, line 2\): these are pixels"):
        load_data(tmp_path, "train")
    write_text(tmp_path / "labels/a.txt", "0 0.5 0.5 0.2 0.4\n0 30 20 12 16\n")  # half of them: what is wrong is dropped
    assert kinds(load_data(tmp_path, "train")) == ["box outside image"]


@pytest.mark.parametrize(("shift", "doubted"), [(0, True), (-30, False)])
def test_corners_in_place_of_sizes_are_doubted(tmp_path, shift, doubted):
    boxes = [(30 + n + shift, 20, 50 + n, 38) for n in range(10)]  # as x, y, width, height they reach out of 60 x 40
    data = load_data(coco(tmp_path, *boxes, *([(5, 5, 4, 4)] if not doubted else [])), "train")
    assert ("corners or sizes" in kinds(data)) is doubted


def test_where_images_were_looked_for_is_said(tmp_path):
    (coco(tmp_path, (1, 2, 3, 4)) / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"none of its 1 image, such as a.jpg, is in .*; a dataset YAML with format: coco"):
        load_data(tmp_path, "train")


def test_boxes_twice_under_one_id(tmp_path):
    data = load_data(coco(tmp_path, (1, 2, 3, 4), (1, 2, 3, 4)), "train")
    assert "stands under the same id already" in data.problems[0].message


def test_datumaro_own_format_is_named(tmp_path):
    write_text(tmp_path / "annotations/train.json", json.dumps({"items": [], "categories": {}}))
    with pytest.raises(DataError, match="datumaro's own format: export it with -f coco_instances"):
        load_data(tmp_path, "train")


def test_labels_without_names_are_recognised_in_the_message(tmp_path):
    for folder, labels in (("flat", "flat"), ("nested/train/images", "nested/train/labels")):
        make_image(tmp_path / folder / "a.jpg", (W, H))
        write_text(tmp_path / labels / "a.txt", "0 0.5 0.5 0.2 0.4\n")
        with pytest.raises(DataError, match=r"looks like a YOLO set without its data.yaml"):
            load_data(tmp_path / folder.partition("/")[0], "train")


@pytest.mark.parametrize("names", [("Training", "Validation", "Testing"), ("training", "valid", "test2017")])
def test_folders_of_splits_in_other_words(tmp_path, names):
    for number, name in enumerate(names):
        make_image(tmp_path / name / f"{number}.jpg", (W, H))
        write_xml(tmp_path / name / f"{number}.xml", object_xml("cat", (24, 12, 36, 28)), size=(W, H))
    assert available_splits(tmp_path) == ["train", "val", "test"]
    assert found_in(load_data(tmp_path, "train")) == {"0": [CAT]}


@pytest.mark.parametrize("names", [("1/a.jpg", "2/a.jpg"), ("b/a.jpg", "b/a.png")])
@pytest.mark.parametrize("listed", [False, True])
def test_images_of_one_name_are_not_background(tmp_path, names, listed):
    key = "a" if names[0].startswith("1") else "b/a"
    for name in (*names, "c.jpg"):
        make_image(tmp_path / "JPEGImages" / name, (W, H))
    write_xml(tmp_path / f"Annotations/{key}.xml", object_xml("cat", (24, 12, 36, 28)), size=(W, H), filename="a.jpg")
    write_xml(tmp_path / "Annotations/c.xml", object_xml("dog", (12, 16, 18, 24)), size=(W, H), filename="c.jpg")
    if listed:
        write_text(tmp_path / "ImageSets/Main/train.txt", f"c\n{names[0]}\n{names[1][:-4]}\n")
    data = load_data(tmp_path, "train")
    assert all(len(record.labels) for record in data.records)
    assert listed or "several images of one name" in kinds(data)


def test_a_split_that_joins_others_is_left_out_of_yolo(tmp_path):
    for name in "ab":
        make_image(tmp_path / f"set/JPEGImages/{name}.jpg", (W, H))
        write_xml(tmp_path / f"set/Annotations/{name}.xml", object_xml("cat", (24, 12, 36, 28)), size=(W, H))
    for split, names in (("train", "a"), ("val", "b"), ("trainval", "a\nb")):
        write_text(tmp_path / f"set/ImageSets/Main/{split}.txt", names)
    result = convert(tmp_path / "set", "yolo", tmp_path / "out")
    assert (sorted(result.splits), result.splits_left_out) == (["train", "val"], ["trainval"])
    write_text(tmp_path / "set/ImageSets/Main/val.txt", "a")
    with pytest.raises(DataError, match="would miss the split trainval"):
        convert(tmp_path / "set", "yolo", tmp_path / "other")


def test_a_folder_in_which_train_lies_is_not_taken_for_test(tmp_path):
    """Roboflow names test/images in data.yaml though there are none."""
    yaml = make_yolo(tmp_path, {"a": "0 0.5 0.5 0.2 0.4"}, yaml="test: ../test/images\nnames: [cat]\n")
    with pytest.raises(DataError, match=r"test names \.\./test/images, which does not exist"):
        load_data(yaml, "test")


def test_the_folder_of_a_run_is_no_part_of_the_data(tmp_path):
    write_text(tmp_path / "classes.txt", "cat\n")
    make_image(tmp_path / "a.jpg", (W, H))
    write_text(tmp_path / "a.txt", "0 0.5 0.5 0.2 0.4\n")
    for name in ("again/config.yaml", "again/metrics.csv", "sub/config.yaml"):
        write_text(tmp_path / name, "")
    for name in ("again/pictures/training_batch.jpg", "sub/b.jpg"):
        make_image(tmp_path / name, (W, H))
    assert found_in(load_data(tmp_path, "train")) == {"a.jpg": [CAT], "sub/b.jpg": []}
