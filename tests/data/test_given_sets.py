"""Data sets as people and tools leave them: each is read as intended, or refused in one sentence."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from nextdetr import pictures
from nextdetr.data.check import require_boxes
from nextdetr.data.listing import list_images
from nextdetr.data.sources import load_data
from nextdetr.data.unlabelled import find_unlabelled
from nextdetr.errors import DataError
from nextdetr.installation import install_command

from .files import box_entry, image_entry, kinds, make_image, object_xml, write_coco, write_text
from .small_sets import CAT, CAT_BOX, DOG, DOG_BOX, Case, H, W, check, check_case, write

YAML = "train: images\nnames: [cat, dog]\n"
KEYPOINTS = "0.1 0.1 0.9 0.9 0.2 0.8"


YOLO = {
    "confidence in a sixth column": Case(
        {"data.yaml": YAML, "images/a.jpg": None, "labels/a.txt": f"{CAT} 0.98\n{DOG} 1\n"},
        {"images/a.jpg": [CAT_BOX, DOG_BOX]}, ("confidence in labels",),
    ),
    "a sixth column that is no confidence": Case(
        {"data.yaml": YAML, "images/a.jpg": None, "labels/a.txt": f"{CAT} 17\n{DOG} 0.5\n{DOG} 1.5\n"},
        {"images/a.jpg": [DOG_BOX]}, ("malformed label line", "malformed label line", "confidence in labels"),
    ),
    "key points": Case(
        {"data.yaml": f"{YAML}kpt_shape: [3, 2]\n", "images/a.jpg": None,
         "labels/a.txt": f"{CAT} {KEYPOINTS}\n{DOG} {KEYPOINTS}\n{DOG.replace('0.1', '0.2')}\n"},
        {"images/a.jpg": [CAT_BOX, DOG_BOX, ("dog", 9, 16, 21, 24)]},
    ),
    "an even number of values, as COCO's 17 key points have": Case(
        {"data.yaml": f"{YAML}kpt_shape: [17, 3]\n", "images/a.jpg": None,
         "labels/a.txt": f"{CAT} {'0.1 0.9 2 ' * 17}\n{DOG} {'0.1 0.9 0 ' * 17}\n{DOG.replace('0.1', '0.2')}\n"},
        {"images/a.jpg": [CAT_BOX, DOG_BOX, ("dog", 9, 16, 21, 24)]},
    ),
    "key points of another number": Case(
        {"data.yaml": f"{YAML}kpt_shape: [4, 2]\n", "images/a.jpg": None, "labels/a.txt": f"{CAT} {KEYPOINTS}\n{DOG}\n"},
        {"images/a.jpg": [DOG_BOX]}, ("malformed label line",),
    ),
    "a shape of key points that is none": Case(
        {"data.yaml": f"{YAML}kpt_shape: 17\n", "images/a.jpg": None, "labels/a.txt": CAT},
        "kpt_shape is 17; it must be two numbers",
    ),
    "key points of which the YAML does not tell": Case(
        {"data.yaml": YAML, "images/a.jpg": None, "labels/a.txt": f"0 {'0.4 0.3 0.6 0.7 ' * 2} 0.6 0.3\n" * 10},
        {"images/a.jpg": [CAT_BOX]}, ("polygons or key points", *("box given twice",) * 9),
    ),
    "our YAML with key points": Case(
        {"set.yaml": "format: yolo\nclasses: [cat, dog]\nkpt_shape: [3, 2]\ntrain: {images: images}\n",
         "images/a.jpg": None, "labels/a.txt": f"{CAT} {KEYPOINTS}\n"},
        {"images/a.jpg": [CAT_BOX]},
    ),
    "a folder above is called images": Case(
        {"images/set/data.yaml": "train: train\nnames: [cat, dog]\n", "images/set/train/a.jpg": None,
         "images/set/train/a.txt": CAT},
        {"train/a.jpg": [CAT_BOX]}, path="images/set",
    ),
    "indices from 1": Case(
        {"data.yaml": YAML, "images/a.jpg": None, "labels/a.txt": f"{CAT.replace('0', '2', 1)}\n{DOG}\n"},
        r"do not fit the names: 1 \(1 times\), 2 \(1 times\) occur \(such as .*a.txt, line 1\), and named are 0 cat, 1 dog",
    ),
    "indices from -1": Case(
        {"data.yaml": YAML, "images/a.jpg": None, "labels/a.txt": f"-{DOG}\n{CAT}\n"},
        r"-1 \(1 times\), 0 \(1 times\) occur",
    ),
    "one index too many": Case(
        {"data.yaml": YAML, "images/a.jpg": None, "labels/a.txt": f"{CAT}\n{DOG}\n2 0.5 0.5 0.1 0.1\n"},
        {"images/a.jpg": [CAT_BOX, DOG_BOX]}, ("unknown class",),
    ),
    "the same row twice": Case(
        {"data.yaml": YAML, "images/a.jpg": None, "labels/a.txt": f"{CAT}\n{DOG}\n{CAT}\n{CAT}\n"},
        {"images/a.jpg": [CAT_BOX, DOG_BOX]}, ("box given twice", "box given twice"),
    ),
    "two images of one name": Case(
        {"data.yaml": YAML, "images/a.jpg": None, "images/a.png": None, "labels/a.txt": CAT},
        {"images/a.jpg": [CAT_BOX], "images/a.png": [CAT_BOX]}, ("label file of two images",),
    ),
    "one name in two folders": Case(
        {"data.yaml": YAML, "images/1/a.jpg": None, "images/2/a.jpg": None, "labels/1/a.txt": CAT, "labels/2/a.txt": DOG},
        {"images/1/a.jpg": [CAT_BOX], "images/2/a.jpg": [DOG_BOX]},
    ),
    "one name in two folders, listed": Case(
        {"set.yaml": "format: yolo\nclasses: [cat, dog]\ntrain: {images: images, include: [2/a.jpg]}\n",
         "images/1/a.jpg": None, "images/2/a.jpg": None, "labels/1/a.txt": CAT, "labels/2/a.txt": DOG},
        {"images/2/a.jpg": [DOG_BOX]},
    ),
    "one name in two folders, listed without them": Case(
        {"set.yaml": "format: yolo\nclasses: [cat, dog]\ntrain: {images: images, include: [a.jpg, b.jpg]}\n",
         "images/1/a.jpg": None, "images/2/a.jpg": None, "images/b.jpg": None, "labels/1/a.txt": CAT, "labels/b.txt": DOG},
        {"images/b.jpg": [DOG_BOX]}, ("ambiguous name",),
    ),
    "label folder with the subfolders of the images": Case(
        {"set.yaml": "format: yolo\nclasses: [cat, dog]\ntrain: {images: photos, annotations: text}\n",
         "photos/1/a.jpg": None, "photos/2/a.jpg": None, "text/1/a.txt": CAT, "text/2/a.txt": DOG},
        {"photos/1/a.jpg": [CAT_BOX], "photos/2/a.jpg": [DOG_BOX]},
    ),
    "label folder without the subfolders of the images": Case(
        {"set.yaml": "format: yolo\nclasses: [cat, dog]\ntrain: {images: photos, annotations: text}\n",
         "photos/1/a.jpg": None, "photos/2/a.jpg": None, "text/a.txt": CAT},
        "2 images of the split are called a, and nothing says whose labels these are",
    ),
    "a list of another computer, of images that are not here": Case(
        {"data.yaml": "train: train.txt\nnames: [cat]\n", "train.txt": "/home/u/x/images/a.jpg\n", "images/b.jpg": None},
        r"none of 1 image exists, the first being .*images/a.jpg \(named in .*train.txt, line 1\)",
    ),
    "a list spelt in other letters": Case(
        {"data.yaml": "train: train.txt\nnames: [cat, dog]\n", "labels/ü.txt": CAT, "images/ü.JPG": None,
         "images/b.jpg": None, "labels/b.txt": DOG,
         "train.txt": unicodedata.normalize("NFD", "images/ü.jpg\n./images/B.jpg\n")},
        {"images/ü.JPG": [CAT_BOX], "images/b.jpg": [DOG_BOX]},
    ),
    "a list with folders in it": Case(
        {"data.yaml": "train: train.txt\nnames: [cat]\n", "train.txt": "/\n.\nimages\nimages/a.jpg\n", "images/a.jpg": None,
         "labels/a.txt": CAT},
        {"images/a.jpg": [CAT_BOX]}, ("not an image",) * 3,
    ),
    "a list with a zero byte": Case(
        {"data.yaml": "train: train.txt\nnames: [cat]\n", "train.txt": "images/a.jpg\nima\0ges/b.jpg\n",
         "images/a.jpg": None, "labels/a.txt": CAT},
        {"images/a.jpg": [CAT_BOX]}, ("missing image",),
    ),
    "label file spelt in other letters": Case(
        {"data.yaml": YAML, "images/Photo.JPG": None, "labels/photo.TXT": CAT}, {"images/Photo.JPG": [CAT_BOX]}
    ),
    "a class twice": Case(
        {"data.yaml": "train: images\nnames: {0: cat, 1: dog, 2: cat}\n", "images/a.jpg": None,
         "labels/a.txt": f"{CAT.replace('0', '2', 1)}\n{DOG}\n"},
        {"images/a.jpg": [CAT_BOX, DOG_BOX]}, ("equal names",),
    ),
    "a key twice": Case(
        {"data.yaml": "train: images\nnames:\n  0: cat\n  0: dog\n", "images/a.jpg": None, "labels/a.txt": CAT},
        r"data.yaml, line 4: 0 is given again, after line 3\.",
    ),
    "aliases of aliases, which would fill all memory if they were written out": Case(
        {"data.yaml": YAML + "\na0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60)),
         "images/a.jpg": None, "labels/a.txt": CAT},
        {"images/a.jpg": [CAT_BOX]},
    ),
    "a class without a name": Case(
        {"data.yaml": "train: images\nnames: [cat, '']\n", "images/a.jpg": None, "labels/a.txt": CAT},
        "names must be a list of class names",
    ),
    "a mark, Windows' line ends, whole numbers with a point, and spaces": Case(
        {"data.yaml": YAML, "images/a b .jpg": None, "labels/a b .txt": f"\ufeff 0.0 0.5\t0.5  0.2 0.4 \r\n\r\n{DOG}\r\n"},
        {"images/a b .jpg": [CAT_BOX, DOG_BOX]},
    ),
}  # fmt: skip

VOC = {
    "subfolders": Case(
        {"Annotations/1/a.xml": object_xml(*("cat", CAT_BOX[1:])), "Annotations/2/a.xml": object_xml("dog", DOG_BOX[1:]),
         "JPEGImages/1/a.jpg": None, "JPEGImages/2/a.jpg": None, "ImageSets/Main/train.txt": "1/a\n2/a\n"},
        {"1/a": [CAT_BOX], "2/a": [DOG_BOX]},
    ),
    "the same object twice": Case(
        {"Annotations/a.xml": object_xml("cat", CAT_BOX[1:]) * 2, "JPEGImages/a.jpg": None,
         "ImageSets/Main/train.txt": "a"},
        {"a": [CAT_BOX]}, ("box given twice",),
    ),
    "two files of annotations name one image": Case(
        {"Annotations/1.xml": object_xml("cat", CAT_BOX[1:]), "Annotations/2.xml": object_xml("dog", DOG_BOX[1:]),
         "JPEGImages/photo.jpg": None, "ImageSets/Main/train.txt": "1\n2"},
        {"1": [CAT_BOX]}, ("image listed twice",),
    ),
    "annotations in two spellings": Case(
        {"Annotations/a.XML": object_xml("cat", CAT_BOX[1:]), "Annotations/a.xml": object_xml("dog", DOG_BOX[1:]),
         "JPEGImages/a.jpg": None, "ImageSets/Main/train.txt": "a"},
        {"a": [CAT_BOX]}, ("annotation file given twice",),
    ),
    "two images of one name": Case(
        {"Annotations/a.xml": object_xml("cat", CAT_BOX[1:]), "JPEGImages/a.jpg": None, "JPEGImages/a.png": None,
         "ImageSets/Main/train.txt": "a"},
        {"a": [CAT_BOX]}, ("several images of one name",),
    ),
    "names spelt in other letters": Case(
        {"Annotations/Übung.XML": object_xml("cat", CAT_BOX[1:]), "JPEGImages/übung.JPG": None,
         "ImageSets/Main/train.txt": unicodedata.normalize("NFD", "übung.jpg")},
        {"Übung": [CAT_BOX]},
    ),
}  # fmt: skip


YOLO |= {f"VOC, {name}": case for name, case in VOC.items()}


@pytest.mark.parametrize("name", YOLO)
def test_set_is_read_as_it_is_meant_or_refused(tmp_path, name):
    check_case(YOLO[name], tmp_path)


class CocoCase(NamedTuple):
    """A COCO file of two images: what is changed in its parts, and what is found."""

    change: Callable[[dict], None]
    found: dict[str, list[tuple]]
    kinds: tuple[str, ...] = ()
    classes: tuple[str, ...] = ("cat", "dog")
    ids: tuple[int | str, ...] = (1, 2)


BOTH = {"7": [CAT_BOX], "8": [DOG_BOX]}


def twice(content):
    content["annotations"] += [{**row, "id": row["id"] + 100} for row in content["annotations"]]


def root_category(content):
    content["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})
    for entry in content["categories"][1:]:
        entry["supercategory"] = "animals"


def used_root(content):
    root_category(content)
    content["annotations"][0]["category_id"] = 0


def own_parent(content):
    for entry in content["categories"]:
        entry["supercategory"] = entry["name"]


COCO = {
    "every annotation twice": CocoCase(twice, BOTH, ("box given twice",) * 2),
    "a category that only names a group": CocoCase(root_category, BOTH),
    "a group that has a box": CocoCase(
        used_root, {"7": [("animals", *CAT_BOX[1:])], "8": [DOG_BOX]}, classes=("animals", "cat", "dog"), ids=(0, 1, 2)
    ),
    "categories that are their own group": CocoCase(own_parent, BOTH),
    "the same box as a crowd": CocoCase(
        lambda content: content["annotations"].append({**content["annotations"][0], "id": 9, "iscrowd": 1}),
        {"7": [CAT_BOX, CAT_BOX], "8": [DOG_BOX]},
    ),
    "spaces around a name": CocoCase(lambda content: content["categories"][0].update(name=" cat "), BOTH),
    "endings in other letters": CocoCase(lambda content: content["images"][0].update(file_name="A.jpeg"), BOTH),
    "accents in two signs": CocoCase(
        lambda content: content["images"][1].update(file_name=unicodedata.normalize("NFD", "ü.jpg")), BOTH
    ),
    "the same file under two ids": CocoCase(
        lambda content: content["images"].append({**content["images"][0], "id": 9, "file_name": "./a.JPEG"}), BOTH,
        ("image listed twice",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COCO)
def test_coco_is_read_as_it_is_meant(tmp_path, name):
    case = COCO[name]
    make_image(tmp_path / "train" / "a.JPEG", (W, H))
    make_image(tmp_path / "train" / "ü.jpg", (W, H))
    rows = [box_entry(1, 7, 1, [24, 12, 12, 16]), box_entry(2, 8, 2, [12, 16, 6, 8])]
    content = {
        "images": [image_entry(7, "a.JPEG", (W, H)), image_entry(8, "ü.jpg", (W, H))],
        "annotations": rows,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    case.change(content)
    path = tmp_path / "annotations" / "instances_train.json"
    write_coco(path, content["images"], content["annotations"])
    path.write_text(json.dumps(content))
    data = load_data(tmp_path, "train")
    check(data, Case({}, case.found, case.kinds))
    assert (tuple(data.classes), tuple(data.category_ids)) == (case.classes, case.ids)


def test_group_category_stays_a_class_of_a_detector_that_has_it(tmp_path):
    make_image(tmp_path / "train" / "a.jpg", (W, H))
    path = write_coco(tmp_path / "annotations" / "instances_train.json", [image_entry(1, "a.jpg", (W, H))],
                      [box_entry(1, 1, 1, [24, 12, 12, 16])])  # fmt: skip
    text = path.read_text().replace('"name": "cat"', '"name": "cat", "supercategory": "dog"')
    path.write_text(text)
    assert load_data(tmp_path, "train").classes == ["cat"]
    data = load_data(tmp_path, "train", classes=["dog", "cat"])
    assert (data.classes, data.category_ids, data.records[0].labels.tolist()) == (["dog", "cat"], [2, 1], [1])


@pytest.fixture
def linked(tmp_path) -> Path:
    """Two folders of pictures, one of them linked, twice, with a link back to the top and one that leads nowhere."""
    for name in ("set/images/plain/a.jpg", "store/b.jpg", "set/images/.hidden/c.jpg"):
        make_image(tmp_path / name, (W, H))
    for name in ("plain/a", "link/b"):
        write_text(tmp_path / f"set/labels/{name}.txt", CAT)
    top = tmp_path / "set" / "images"
    try:
        (top / "link").symlink_to(tmp_path / "store", target_is_directory=True)
        (top / "link2").symlink_to(tmp_path / "store", target_is_directory=True)
        (tmp_path / "store" / "circle").symlink_to(top, target_is_directory=True)
        (top / "plain" / "gone").symlink_to(tmp_path / "nothing", target_is_directory=True)
    except OSError:
        pytest.skip("this system lets nobody make links")
    write_text(tmp_path / "set" / "data.yaml", YAML)
    return tmp_path / "set"


def test_linked_folders_are_looked_through_once(linked):
    listing = list_images(linked / "images")
    assert [path.relative_to(linked / "images").as_posix() for path in listing.files] == ["link/b.jpg", "plain/a.jpg"]
    assert [problem.kind for problem in listing.problems] == ["broken link"]
    data = load_data(linked, "train")
    check(data, Case({}, {"images/link/b.jpg": [CAT_BOX], "images/plain/a.jpg": [CAT_BOX]}, ("broken link",)))
    photos = find_unlabelled([linked / "images"])
    assert sorted(record.path.name for record in photos.records) == ["a.jpg", "b.jpg"]
    assert kinds(photos) == ["broken link"]


def test_what_commands_write_is_no_part_of_the_data_set(tmp_path, monkeypatch):
    for name in ("set/a.jpg", "set/runs/nextdetr-atto-set/pictures/batch.jpg", "set/1/runs/b.jpg"):
        make_image(tmp_path / name, (W, H))
    monkeypatch.chdir(tmp_path / "set")
    assert [str(path) for path in list_images(Path()).files] == ["1/runs/b.jpg", "a.jpg"]
    assert [path.name for path in list_images(Path("runs")).files] == ["batch.jpg"]
    monkeypatch.chdir(tmp_path)
    assert len(list_images(Path("set")).files) == 3


def test_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    path = write(tmp_path, Case({"data.yaml": YAML, "images/1/a.jpg": None, "labels/1/a.txt": CAT}, {}))
    scan = os.scandir

    def refuse(folder):
        if str(folder).endswith("1"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"images.1 cannot be read: Permission denied"):
        load_data(path, "train")
    with pytest.raises(DataError, match=r"images.1 cannot be read: Permission denied"):
        find_unlabelled([path / "images"])


@pytest.mark.parametrize(
    ("rows", "iscrowd", "message"),
    [
        ([[1, 1, 0, 0], [1, 1, 0, 5]], 0, r"no box to learn from; dropped were box without area \(2\), such as .*annot"),
        ([[1, 1, 9, 9], [2, 2, 9, 9]], 1, "no box to learn from: all 2 are crowds"),
        ([], 0, "no box to learn from: every image is background"),
    ],
)  # fmt: skip
def test_training_needs_a_box(tmp_path, rows, iscrowd, message):
    make_image(tmp_path / "train" / "a.jpg", (W, H))
    entries = [box_entry(number, 1, 1, row) | {"iscrowd": iscrowd} for number, row in enumerate(rows)]
    write_coco(tmp_path / "annotations" / "instances_train.json", [image_entry(1, "a.jpg", (W, H))], entries)
    with pytest.raises(DataError, match=message):
        require_boxes(load_data(tmp_path, "train"))


def test_text_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_bytes("train: images\nnames: [K\xe4fer]\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"data.yaml: not valid YAML \(not UTF-8 at character \d+\)"):
        load_data(path, "train")


def test_smallest_set_is_read(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "a.png")
    write_text(tmp_path / "a.txt", "0 0.5 0.5 1 1")
    path = write_text(tmp_path / "data.yaml", "train: .\nval: .\nnames: [cat]\n")
    data = load_data(path, "train")
    require_boxes(data)
    assert [record.boxes.tolist() for record in data.records] == [[[0, 0, 1, 1]]]


def test_pictures_that_cannot_be_read_here_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_has_heif", lambda: False)
    for name in ("a.HEIC", "1/b.heif", "c.NEF", ".d.heic", "notes.txt"):
        write_text(tmp_path / "images" / name, "")
    heic = re.escape(f"2 HEIC ({install_command('heif')}) are skipped")
    told = rf"{heic}; 1 camera raw \(develop first\) are skipped"
    with pytest.raises(DataError, match=rf"there is no image in this folder or below it; {told}"):
        find_unlabelled([tmp_path / "images"])
    write_text(tmp_path / "data.yaml", YAML)
    with pytest.raises(DataError, match=rf"the split is empty; it holds no image; {told}"):
        load_data(tmp_path, "train")
    make_image(tmp_path / "images" / "e.jpg", (W, H))
    write_text(tmp_path / "images" / "e.txt", CAT)
    check(load_data(tmp_path, "train"), Case({}, {"images/e.jpg": [CAT_BOX]}, ("picture of another kind",) * 2))
    monkeypatch.setattr(pictures, "_has_heif", lambda: True)
    listed = [path.relative_to(tmp_path / "images").as_posix() for path in list_images(tmp_path / "images").files]
    assert listed == ["1/b.heif", "a.HEIC", "e.jpg"]
