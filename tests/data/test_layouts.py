"""Data sets in the folders that annotation tools write: every split is found, and each image has its own annotations."""

from __future__ import annotations

import json
import unicodedata

import pytest

from nextdetr.data.sources import available_splits, load_data
from nextdetr.errors import DataError

from .files import box_entry, image_entry, object_xml
from .small_sets import CAT, CAT_BOX, DOG, DOG_BOX, Case, H, W, check, write

NAMES = "cat\ndog\n\n"
BARE = "names: [cat, dog]\n"
CAT_XML, DOG_XML = object_xml("cat", CAT_BOX[1:]), object_xml("dog", DOG_BOX[1:])


def coco(*names: str, **extra) -> str:
    """A cat in the first image and a dog in the second."""
    rows = [box_entry(1, 1, 1, [24, 12, 12, 16]), box_entry(2, 2, 2, [12, 16, 6, 8])]
    return json.dumps(
        {
            "images": [image_entry(number, name, (W, H), **extra) for number, name in enumerate(names, start=1)],
            "annotations": rows[: len(names)],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        }
    )


YOLO = {
    "names in a YAML, folders in each split": Case(
        {"data.yaml": BARE, "train/images/a.jpg": None, "train/labels/a.txt": CAT, "valid/images/b.jpg": None,
         "valid/labels/b.txt": DOG},
        {"train/images/a.jpg": [CAT_BOX], "valid/images/b.jpg": [DOG_BOX]},
    ),
    "classes.txt, a folder a split": Case(
        {"classes.txt": NAMES, "images/train/1/a.jpg": None, "labels/train/1/a.txt": CAT, "images/val/b.jpg": None,
         "labels/val/b.txt": DOG},
        {"images/train/1/a.jpg": [CAT_BOX], "images/val/b.jpg": [DOG_BOX]},
    ),
    "classes.txt among the labels, which lie beside the images": Case(
        {"train/classes.txt": NAMES, "train/a.jpg": None, "train/a.txt": CAT, "val/b.jpg": None, "val/b.txt": DOG},
        {"train/a.jpg": [CAT_BOX], "val/b.jpg": [DOG_BOX]},
    ),
    "another program's YAML": Case(
        {"classes.txt": NAMES, "notes.yaml": "a: [", "a.jpg": None, "a.txt": CAT}, {"a.jpg": [CAT_BOX]}
    ),
    "capitals": Case(
        {"classes.txt": NAMES, "Images/Train/a.jpg": None, "Labels/Train/a.txt": CAT, "Images/Val/b.jpg": None,
         "Labels/Val/b.txt": DOG},
        {"Images/Train/a.jpg": [CAT_BOX], "Images/Val/b.jpg": [DOG_BOX]},
    ),
    "Roboflow's for darknet": Case(
        {"train/_darknet.labels": NAMES, "train/a.jpg": None, "train/a.txt": CAT, "valid/_darknet.labels": NAMES,
         "valid/b.jpg": None, "valid/b.txt": DOG},
        {"train/a.jpg": [CAT_BOX], "valid/b.jpg": [DOG_BOX]},
    ),
    "classes.txt and lists": Case(
        {"classes.txt": NAMES, "images/a.jpg": None, "labels/a.txt": CAT, "images/b.jpg": None, "labels/b.txt": DOG,
         "train.txt": "images/a.jpg\n", "val.txt": "./images/b.jpg\n"},
        {"images/a.jpg": [CAT_BOX], "images/b.jpg": [DOG_BOX]},
    ),
    "everything in one folder": Case(
        {"classes.txt": NAMES, "a.jpg": None, "a.txt": CAT, "1/b.jpg": None, "1/b.txt": DOG, "c.jpg": None},
        {"a.jpg": [CAT_BOX], "1/b.jpg": [DOG_BOX], "c.jpg": []},
    ),
    "images beside a folder of a split": Case(
        {"classes.txt": NAMES, "a.jpg": None, "a.txt": CAT, "train/b.jpg": None, "train/b.txt": DOG},
        {"a.jpg": [CAT_BOX], "train/b.jpg": [DOG_BOX]},
    ),
    "darknet, run above": Case(
        {"data/obj.data": "classes= 2\ntrain  = data/train.txt\nvalid = data/val.txt\nnames = data/obj.names\n",
         "data/obj.names": NAMES, "data/train.txt": "data/obj/a.jpg\n", "data/val.txt": "data/obj/b.jpg\n",
         "data/obj/a.jpg": None, "data/obj/a.txt": CAT, "data/obj/b.jpg": None, "data/obj/b.txt": DOG},
        {"data/obj/a.jpg": [CAT_BOX], "data/obj/b.jpg": [DOG_BOX]},
    ),
    "darknet, whose folder data is gone": Case(
        {"obj.data": "train = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\n", "obj.names": NAMES,
         "train.txt": "data/obj_train_data/1/a.jpg\n", "valid.txt": "data/obj_valid_data/b.jpg\n",
         "obj_train_data/1/a.jpg": None, "obj_train_data/1/a.txt": CAT, "obj_valid_data/b.jpg": None,
         "obj_valid_data/b.txt": DOG},
        {"obj_train_data/1/a.jpg": [CAT_BOX], "obj_valid_data/b.jpg": [DOG_BOX]},
    ),
    "patterns": Case(
        {"data.yaml": f"train: images/tr*\nval: [images/v*/*.jpg]\n{BARE}", "images/train/a.jpg": None,
         "images/train.cache": "", "labels/train/a.txt": CAT, "images/val/b.jpg": None, "labels/val/b.txt": DOG},
        {"images/train/a.jpg": [CAT_BOX], "images/val/b.jpg": [DOG_BOX]},
    ),
    "below the folder of all data sets": Case(
        {"cfg/data.yaml": f"path: set\ntrain: images/1\nval: images/2\n{BARE}", "datasets/set/images/1/a.jpg": None,
         "datasets/set/labels/1/a.txt": CAT, "datasets/set/images/2/b.jpg": None, "datasets/set/labels/2/b.txt": DOG},
        {"images/1/a.jpg": [CAT_BOX], "images/2/b.jpg": [DOG_BOX]}, path="cfg",
    ),
    "from the folder above": Case(
        {"set/data.yaml": f"train: set/images/1\nval: set/images/2\n{BARE}", "set/images/1/a.jpg": None,
         "set/labels/1/a.txt": CAT, "set/images/2/b.jpg": None, "set/labels/2/b.txt": DOG},
        {"images/1/a.jpg": [CAT_BOX], "images/2/b.jpg": [DOG_BOX]}, path="set",
    ),
    "folders of another computer": Case(
        {"data.yaml": f"train: /content/x/images/train\nval: D:\\x\\images\\val\n{BARE}", "images/train/a.jpg": None,
         "labels/train/a.txt": CAT, "images/val/b.jpg": None, "labels/val/b.txt": DOG},
        {"images/train/a.jpg": [CAT_BOX], "images/val/b.jpg": [DOG_BOX]}, ("path of another computer",) * 2,
    ),
    "entries that name images again": Case(
        {"data.yaml": f"train: [images/train, again.txt]\nval: images/**/val**\n{BARE}", "images/train/a.jpg": None,
         "labels/train/a.txt": CAT, "again.txt": "images/train/a.jpg\n", "images/x/val/b.jpg": None,
         "labels/x/val/b.txt": DOG, "images/x/val/val/c.jpg": None},
        {"images/train/a.jpg": [CAT_BOX], "images/x/val/b.jpg": [DOG_BOX], "images/x/val/val/c.jpg": []},
        ("image listed twice",),
    ),
    "lists of another computer": Case(
        {"data.yaml": f"train: train.txt\nval: val.txt\n{BARE}", "train.txt": "/home/u/1/a.jpg\n/home/u/2/c.jpg\n",
         "val.txt": "C:\\u\\images\\2\\a.jpg\n", "images/1/a.jpg": None, "images/2/a.jpg": None, "images/3/c.jpg": None,
         "labels/1/a.txt": CAT, "labels/2/a.txt": DOG},
        {"images/1/a.jpg": [CAT_BOX], "images/3/c.jpg": [], "images/2/a.jpg": [DOG_BOX]}, ("path of another computer",) * 2,
    ),
    "two splits whose paths end alike": Case(
        {"data.yaml": f"train: /x/train/images\nval: /x/val/images\n{BARE}", "images/a.jpg": None, "labels/a.txt": CAT},
        "train names /x/train/images, which does not exist",
    ),
    "a line without a name": Case(
        {"classes.txt": "cat\n\ndog\n", "a.jpg": None, "a.txt": CAT}, r"classes\.txt, line 2: the line is empty",
    ),
    "indices from 1": Case(
        {"classes.txt": NAMES, "a.jpg": None, "a.txt": f"{DOG}\n2 0.5 0.5 0.1 0.1"}, "do not fit the names",
    ),
    "darknet without its names": Case(
        {"obj.data": "train = train.txt\nnames = obj.names\n", "train.txt": "a.jpg", "a.jpg": None, "a.txt": CAT},
        "names is obj.names, which does not exist",
    ),
}  # fmt: skip

VOC = {
    "without lists": Case(
        {"Annotations/1/a.xml": CAT_XML, "Annotations/b.xml": DOG_XML, "JPEGImages/1/a.jpg": None, "JPEGImages/b.jpg": None,
         "JPEGImages/c.jpg": None},
        {"1/a": [CAT_BOX], "b": [DOG_BOX], "c": []},
    ),
    "annotations and images": Case(
        {"annotations/a.xml": CAT_XML, "annotations/b.xml": DOG_XML, "images/a.jpg": None, "images/b.jpg": None},
        {"a": [CAT_BOX], "b": [DOG_BOX]},
    ),
    "another program's YAML": Case(
        {"a.xml": CAT_XML, "a.jpg": None, "notes.yaml": "a: 1"}, {"a": [CAT_BOX]}
    ),
    "FiftyOne's": Case(
        {"data/a.jpg": None, "labels/a.xml": CAT_XML, "data/b.jpg": None, "labels/b.xml": DOG_XML},
        {"a": [CAT_BOX], "b": [DOG_BOX]},
    ),
    "FiftyOne's, a folder a split": Case(
        {"train/data/a.jpg": None, "train/labels/a.xml": CAT_XML, "val/data/b.jpg": None, "val/labels/b.xml": DOG_XML},
        {"a": [CAT_BOX], "b": [DOG_BOX]},
    ),
    "images and other data": Case(
        {"data/z.jpg": None, "images/a.jpg": None, "labels/a.xml": CAT_XML}, {"a": [CAT_BOX]}
    ),
    "a folder of XML files among other annotations": Case(
        {"annotations/xmls/a.xml": CAT_XML, "annotations/list_train.json": "{}", "annotations/list.txt": "a 1",
         "images/a.jpg": None},
        {"a": [CAT_BOX]},
    ),
    "one folder": Case(
        {"a.xml": CAT_XML, "a.jpg": None, "b.XML": DOG_XML, "b.jpg": None}, {"a": [CAT_BOX], "b": [DOG_BOX]}
    ),
    "a folder a split": Case(
        {"train/a.xml": CAT_XML, "train/a.jpg": None, "valid/a.xml": DOG_XML, "valid/a.jpg": None},
        {"a": [CAT_BOX], " a": [DOG_BOX]},
    ),
    "XML files beside a folder of a split": Case(
        {"a.xml": CAT_XML, "a.jpg": None, "test/b.xml": DOG_XML, "test/b.jpg": None}, {"a": [CAT_BOX], "test/b": [DOG_BOX]}
    ),
    "folders in each split": Case(
        {"train/annotations/a.xml": CAT_XML, "train/images/a.jpg": None, "val/annotations/b.xml": DOG_XML,
         "val/images/b.jpg": None},
        {"a": [CAT_BOX], "b": [DOG_BOX]},
    ),
    "splits in each folder": Case(
        {"annotations/train/a.xml": CAT_XML, "images/train/a.jpg": None, "annotations/val/b.xml": DOG_XML,
         "images/val/b.jpg": None},
        {"a": [CAT_BOX], "b": [DOG_BOX]},
    ),
    "lists with folders, endings, pairs, words, and images without XML": Case(
        {"Annotations/photo 1.xml": CAT_XML, "Annotations/b.xml": DOG_XML, "JPEGImages/photo 1.jpg": None,
         "JPEGImages/b.jpg": None, "JPEGImages/c.jpg": None, "JPEGImages/d 2.png": None,
         "ImageSets/Main/train.txt": "photo 1\nphoto 1.jpg\n./JPEGImages/c.jpg\n",
         "ImageSets/Main/val.txt": "JPEGImages/b.jpg Annotations/b.xml\nd 2.png\n",
         "ImageSets/Main/cat_train.txt": "photo 1  1\nc -1\n"},
        {"photo 1": [CAT_BOX], "c": [], "b": [DOG_BOX], "d 2": []}, ("image listed twice",),
    ),
    "lists beside the folders": Case(
        {"Annotations/a.xml": CAT_XML, "Annotations/b.xml": DOG_XML, "JPEGImages/a.jpg": None, "JPEGImages/b.jpg": None,
         "train.txt": "./JPEGImages/a.jpg ./Annotations/a.xml\n", "val.txt": "JPEGImages/b.jpg\n", "labels.txt": "cat"},
        {"a": [CAT_BOX], "b": [DOG_BOX]},
    ),
    "lists of another computer": Case(
        {"Annotations/1/a.xml": CAT_XML, "Annotations/2/b.xml": DOG_XML, "JPEGImages/1/a.jpg": None,
         "JPEGImages/2/b.jpg": None, "ImageSets/Main/train.txt": "/home/u/x/a.jpg\n",
         "ImageSets/Main/val.txt": "/home/u/JPEGImages/2/b.jpg"},
        {"1/a": [CAT_BOX], "2/b": [DOG_BOX]}, ("path of another computer",),
    ),
    "one name in two folders": Case(
        {"Annotations/1/a.xml": CAT_XML, "Annotations/b.xml": DOG_XML, "JPEGImages/2/a.jpg": None,
         "JPEGImages/b.jpg": None},
        {"b": [DOG_BOX], "2/a": []}, ("missing image",),
    ),
    "an XML of another name that names the listed image": Case(
        {"Annotations/x.xml": CAT_XML, "JPEGImages/photo.jpg": None, "ImageSets/Main/train.txt": "photo"}, {"x": [CAT_BOX]}
    ),
    "an image that is listed in another folder": Case(
        {"Annotations/1/a.xml": CAT_XML, "Annotations/b.xml": DOG_XML, "JPEGImages/1/a.jpg": None, "JPEGImages/b.jpg": None,
         "ImageSets/Main/train.txt": "2/a\nb\n"},
        {"b": [DOG_BOX]}, ("missing annotation file",),
    ),
    "names in other letters, without lists": Case(
        {f"Annotations/{unicodedata.normalize('NFD', 'ü')}.xml": CAT_XML, "JPEGImages/ü.JPG": None,
         "Annotations/B.xml": DOG_XML, "JPEGImages/b.jpg": None},
        {"B": [DOG_BOX], unicodedata.normalize("NFD", "ü"): [CAT_BOX]},
    ),
    "not one XML": Case(
        {"Annotations/x.txt": "", "JPEGImages/a.jpg": None, "ImageSets/Main/train.txt": "a\n"},
        r"none of 1 image has an XML file; that of .*a\.jpg is looked for at .*Annotations.a\.xml",
    ),
}  # fmt: skip

COCO = {
    "one file beside the images": Case(
        {"any.json": coco("a.jpg", "1/b.jpg"), "notes.json": '{"categories": []}', "images/a.jpg": None,
         "images/1/b.jpg": None},
        {"1": [CAT_BOX], "2": [DOG_BOX]},
    ),
    "the file itself": Case(
        {"any.json": coco("a.jpg", "b.jpg"), "other.json": coco("c.jpg"), "images/a.jpg": None, "images/b.jpg": None},
        {"1": [CAT_BOX], "2": [DOG_BOX]}, path="any.json",
    ),
    "Label Studio's": Case(
        {"result.json": coco("../../upload/1/x-a.jpg", "..\\..\\upload\\1\\x-b.jpg"), "images/x-a.jpg": None,
         "images/x-b.jpg": None},
        {"1": [CAT_BOX], "2": [DOG_BOX]}, ("path of another computer",),
    ),
    "FiftyOne's": Case(
        {"labels.json": coco("a.jpg", "b.jpg"), "data/a.jpg": None, "data/b.jpg": None}, {"1": [CAT_BOX], "2": [DOG_BOX]}
    ),
    "FiftyOne's, a folder a split": Case(
        {"train/labels.json": coco("a.jpg"), "train/data/a.jpg": None, "validation/labels.json": coco("b.jpg"),
         "validation/data/b.jpg": None},
        {"1": [CAT_BOX], " 1": [("cat", *CAT_BOX[1:])]},
    ),
    "Roboflow's without splits": Case(
        {"_annotations.coco.json": coco("a.jpg", "b.jpg"), "a.jpg": None, "b.jpg": None}, {"1": [CAT_BOX], "2": [DOG_BOX]}
    ),
    "a split called default": Case(
        {"annotations/instances_default.json": coco("a.jpg", "b.jpg"), "annotations/stuff_default.json": "{}",
         "images/default/a.jpg": None, "images/default/b.jpg": None},
        {"1": [CAT_BOX], "2": [DOG_BOX]},
    ),
    "names that end in the split, and patches": Case(
        {"annotations/zhiyuan_objv2_train.json": coco("images/v1/patch0/a.jpg"), "train/patch0/a.jpg": None,
         "annotations/zhiyuan_objv2_val.json": coco("images/v1/patch0/a.jpg"), "val/patch0/a.jpg": None},
        {"1": [CAT_BOX], " 1": [CAT_BOX]},
    ),
    "addresses in place of names": Case(
        {"annotations/lvis_v1_train.json": coco("", coco_url="http://x.org/train2017/1.jpg"), "train2017/1.jpg": None,
         "annotations/lvis_v1_val.json": coco("", coco_url="http://x.org/train2017/2.jpg"), "train2017/2.jpg": None},
        {"1": [CAT_BOX], " 1": [CAT_BOX]},
    ),
    "key points alone": Case(
        {"annotations/person_keypoints_train2017.json": coco("a.jpg"), "train2017/a.jpg": None,
         "annotations/captions_train2017.json": "{}"},
        {"1": [CAT_BOX]},
    ),
    "names relative to the set": Case(
        {"set.yaml": "format: coco\ntrain: {images: images/1, annotations: a.json}\n", "a.json": coco("images/2/a.jpg"),
         "images/1/a.jpg": None, "images/2/a.jpg": None},
        {"1": [CAT_BOX]},
    ),
    "names relative to the file": Case(
        {"annotations/instances_train.json": coco("../photos/a.jpg"), "photos/a.jpg": None}, {"1": [CAT_BOX]}
    ),
    "another split's image of the same name": Case(
        {"annotations/instances_val.json": coco("/x/a.jpg"), "train/a.jpg": None}, "no image of the split val can be used"
    ),
    "two images of one name, of which one is here": Case(
        {"any.json": coco("/x/1/a.jpg", "/x/2/a.jpg"), "images/2/a.jpg": None},
        {"2": [DOG_BOX]}, ("path of another computer", "missing image"),
    ),
    "an ending in other letters": Case(
        {"any.json": coco("a.jpg", "b.jpg"), "images/a.JPG": None, "images/b.JPG": None}, {"1": [CAT_BOX], "2": [DOG_BOX]}
    ),
    "a list with folders": Case(
        {"set.yaml": "format: coco\ntrain: {images: images, annotations: a.json, include: [images/2/a.jpg]}\n",
         "a.json": coco("1/a.jpg", "2/a.jpg"), "images/1/a.jpg": None, "images/2/a.jpg": None},
        {"2": [DOG_BOX]},
    ),
    "a list with the folder of another image": Case(
        {"set.yaml": "format: coco\ntrain: {images: images/1, annotations: a.json, include: [2/a.jpg, b.jpg]}\n",
         "a.json": coco("a.jpg", "b.jpg"), "images/1/a.jpg": None, "images/1/b.jpg": None},
        {"2": [DOG_BOX]}, ("listed image without annotations",),
    ),
    "a list of another computer": Case(
        {"set.yaml": "format: coco\ntrain: {images: images, annotations: a.json, include: l.txt}\n",
         "l.txt": "/x/a.jpg\n/y/b.jpg\n/z/b.jpg",
         "a.json": coco("1/a.jpg", "2/b.jpg"), "images/1/a.jpg": None, "images/2/b.jpg": None},
        {"1": [CAT_BOX]}, ("path of another computer", *("listed image without annotations",) * 2),
    ),
}  # fmt: skip


def test_split_called_default_is_what_training_learns_from(tmp_path):
    write(tmp_path, COCO["a split called default"])
    assert available_splits(tmp_path) == ["train"]
    assert len(load_data(tmp_path, "default").records) == len(load_data(tmp_path, "train").records) == 2


def test_annotations_with_masks_alone_have_their_boxes(tmp_path):
    content = json.loads(coco("a.jpg", "b.jpg"))
    runs = {"size": [H, W], "counts": [24 * H + 12, *([16, H - 16] * 11), 16, 36 * H]}
    first, second = content["annotations"]
    del first["bbox"]
    first["segmentation"] = runs
    second |= {"bbox": [0, 0, 0, 0], "segmentation": [[12, 16, 18, 16, 18, 24]]}
    content["annotations"] += [
        {**second, "id": 3, "bbox": [12, 16, 0, 8]},
        {**first, "id": 4, "segmentation": {"size": [H, W], "counts": [H * W]}},
        {**second, "id": 5, "bbox": [1, 2, 3, 4], "segmentation": [[0, 0, 1, 1, 2, 0]]},
    ]  # fmt: skip
    case = Case({"any.json": json.dumps(content), "a.jpg": None, "b.jpg": None}, {})
    found, kinds = read_all(write(tmp_path, case))
    assert found == {"1": [CAT_BOX], "2": [DOG_BOX, ("dog", 1, 2, 4, 6)]}
    assert kinds == ["malformed box", "box without area"]


def read_all(path):
    """Read every split; an image id that comes again has a space before it, as ids of two files may be the same."""
    found, kinds = {}, []
    for split in available_splits(path):
        data = load_data(path, split)
        boxes = {
            str(r.image_id): [
                (data.classes[label], *(round(float(value), 3) for value in box))
                for label, box in zip(r.labels, r.boxes, strict=True)
            ]
            for r in data.records
        }
        found |= {f" {name}" if name in found else name: value for name, value in boxes.items()}
        kinds += [problem.kind for problem in data.problems]
    return found, kinds


@pytest.mark.parametrize(
    ("group", "name"), [(g, n) for g, cases in (("YOLO", YOLO), ("VOC", VOC), ("COCO", COCO)) for n in cases]
)
def test_layout_is_read_or_refused(tmp_path, group, name):
    case = globals()[group][name]
    path = write(tmp_path, case)
    if isinstance(case.found, str):
        with pytest.raises(DataError, match=case.found):
            read_all(path)
    else:
        found, kinds = read_all(path)
        assert found == case.found
        assert kinds == list(case.kinds)


def test_classes_of_split_folders_are_the_same_for_each(tmp_path):
    write(tmp_path, VOC["a folder a split"])
    assert [load_data(tmp_path, split).classes for split in ("train", "val")] == [["cat", "dog"]] * 2
    data = load_data(tmp_path, "val", classes=["dog"])
    check(data, Case({}, {"a": [DOG_BOX]}))


def test_yolo_set_that_another_program_keeps_elsewhere(tmp_path, monkeypatch):
    case = Case(
        {"data.yaml": f"path: set\ntrain: images\n{BARE}", "home/Ultralytics/settings.json": "{}",
         "all/set/images/a.jpg": None, "all/set/labels/a.txt": CAT},
        {"images/a.jpg": [CAT_BOX]},
    )  # fmt: skip
    write(tmp_path, case)
    settings = tmp_path / "home" / "Ultralytics" / "settings.json"
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(settings.parent))
    with pytest.raises(DataError, match="train names images, which does not exist"):
        load_data(tmp_path / "data.yaml", "train")
    settings.write_text(json.dumps({"datasets_dir": str(tmp_path / "all")}))
    check(load_data(tmp_path / "data.yaml", "train"), case)


def test_yolo_set_in_the_working_folder(tmp_path, monkeypatch):
    case = Case(
        {"configs/data.yaml": f"path: data/set\ntrain: images\n{BARE}", "data/set/images/a.jpg": None,
         "data/set/labels/a.txt": CAT},
        {"images/a.jpg": [CAT_BOX]}, path="configs/data.yaml",
    )  # fmt: skip
    path = write(tmp_path, case)
    with pytest.raises(DataError, match="train names images, which does not exist"):
        load_data(path, "train")
    monkeypatch.chdir(tmp_path)
    check(load_data(path, "train"), case)
