from __future__ import annotations

import pytest

from nextdetr.data.sources import available_splits, load_data
from nextdetr.errors import DataError
from tests.data.files import (
    box_entry,
    image_entry,
    kinds,
    make_image,
    make_voc,
    make_yolo,
    object_xml,
    write_coco,
    write_text,
)


def message_of(path, split="train", **options) -> str:
    with pytest.raises(DataError) as caught:
        load_data(path, split, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_bare_name_is_no_data_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = message_of("bccd")
    assert message.startswith("bccd: there is no such folder, and no data set is known by name: give the path of ")
    assert "Did you mean" not in message
    (tmp_path / "bccd2").mkdir()
    assert message_of("bccd").endswith("Did you mean bccd2?")


def test_path_that_does_not_exist(tmp_path):
    (tmp_path / "cells").mkdir()
    message = message_of(tmp_path / "cels")
    assert "there is no such file or folder" in message
    assert f"Did you mean {tmp_path / 'cells'}?" in message
    message_of(tmp_path / "no" / "such" / "data.yaml")


def test_names_that_the_system_refuses(tmp_path):
    assert "cannot be read" in message_of(tmp_path / ("x" * 400))
    message_of(f"{tmp_path}\0x")
    with pytest.raises(DataError, match="cannot be read"):
        available_splits("x" * 400)


def test_relative_paths(tmp_path, monkeypatch):
    make_voc(tmp_path / "cells")
    monkeypatch.chdir(tmp_path)
    assert load_data("cells", "train").name == "cells"
    monkeypatch.chdir(tmp_path / "cells")
    assert load_data(".", "train").name == "cells"


def test_images_without_labels(tmp_path):
    make_image(tmp_path / "photos" / "a.jpg")
    assert message_of(tmp_path / "photos").endswith("It holds images, but no labels; pretrain and predict need none.")


def test_unrecognised(tmp_path):
    assert "not recognised as a data set" in message_of(tmp_path)
    assert "Did you mean" not in message_of(tmp_path)
    (tmp_path / "faces").mkdir()
    write_text(tmp_path / "faces.yaml", "format: coco\nroot: faces\n")
    assert message_of(tmp_path / "faces").endswith(f"Did you mean {tmp_path / 'faces.yaml'}?")
    (tmp_path / "faces.yaml").unlink()
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    assert "YOLO set without its data.yaml" in message_of(tmp_path)
    assert "dataset YAML with format: coco" in message_of(write_text(tmp_path / "x.json", "{}"))
    assert "expected a Pascal VOC folder" in message_of(write_text(tmp_path / "x.txt", ""))


def test_set_further_down_is_named(tmp_path):
    make_voc(tmp_path / "archive" / "cells")
    assert message_of(tmp_path).endswith(f"Did you mean {tmp_path / 'archive' / 'cells'}?")
    assert message_of(tmp_path / "archive").endswith(f"Did you mean {tmp_path / 'archive' / 'cells'}?")
    make_voc(tmp_path / "archive" / "faces")
    assert "Did you mean" not in message_of(tmp_path)


def test_folder_with_one_yaml(tmp_path):
    yaml = make_yolo(tmp_path / "set", {"a": ""})
    for name, expected in (("data.yaml", "set"), ("dataset.yml", "set"), ("mine.yaml", "mine")):
        yaml = yaml.rename(yaml.with_name(name))
        assert load_data(tmp_path / "set", "train").name == expected
    write_text(yaml.with_name("other.yaml"), "a: 1")
    assert "not recognised" in message_of(tmp_path / "set")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [1, 2\nb: 3\n", "line 2: not valid YAML"),
        ("- a\n- b\n", "a dataset file is a mapping"),
        ("", "a dataset file is a mapping"),
        ("\x00", "not valid YAML"),
        ("a: 1", "neither a YOLO data.yaml, which has names, nor a dataset YAML"),
        ("backbone: []\nhead: []\nnc: 1\n", "this is a model file"),
        ("format: pascal", "format is 'pascal'; it must be coco, yolo, voc, cvat, "),
        ("format: [coco]", "it must be coco, yolo, voc, cvat, "),
        ("format: coco\nroot: nowhere", "root names"),
        ("format: coco\nclasses: cat", "classes must be a list"),
        ("format: coco\nclasses: [cat, cat]", "the same class twice"),
        (
            "format: coco\nclases: [cat]",
            "clases must be a mapping with images, annotations, include. Did you mean classes?",  # codespell:ignore
        ),
        ("format: coco\ntrain: {image: x}", "train has the unknown key image"),
        ("format: coco\ntrain: {images: [x]}", "images of train must be a path"),
        ("format: coco\ntrain: {images: gone, annotations: a.json}", "which does not exist"),
        ("format: coco\ntrain: {images: .}", "train needs annotations"),
        ("format: coco\ntrain: {images: ., annotations: a.json}", "a.json: there is no such annotation file"),
        ("format: voc\ntrain: {images: .}", "Annotations: there is no such folder"),
        ("format: yolo\ntrain: {images: .}", "format yolo needs classes"),
        ("format: coco\nval: {images: .}", "there is no split train; available: val"),
        ("format: yolo\nclasses: [a]", "there is no split train; available: none"),
        ("!!python/object/apply:os.system ['touch hacked']", "a dataset file is a mapping"),
    ],
)
def test_bad_yaml(tmp_path, text, part, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yaml = tmp_path / "set.yaml"
    yaml.write_bytes(text.encode())
    message = message_of(yaml)
    assert part in message
    assert str(tmp_path) in message
    assert not (tmp_path / "hacked").exists()


def coco_yaml(tmp_path, train="", extra=""):
    for name in ("a.jpg", "b.jpg", "sub/c.jpg"):
        make_image(tmp_path / "set" / "pictures" / name)
    images = [image_entry(number, name) for number, name in enumerate(("a.jpg", "b.jpg", "sub/c.jpg"))]
    boxes = [box_entry(number, number, 5 - number, [1, 1, 9, 9]) for number in range(3)]
    write_coco(tmp_path / "set" / "all.json", images, boxes, ((3, "cat"), (4, "dog"), (5, "owl")))
    text = f"format: coco\nroot: set\n{extra}train: {{images: pictures, annotations: all.json{train}}}\nval:\n"
    return write_text(tmp_path / "mine.yaml", text)


def test_dataset_yaml_of_coco(tmp_path):
    yaml = coco_yaml(tmp_path)
    data = load_data(yaml, "train", on_bad_data="error")
    assert (data.name, data.classes, data.category_ids) == ("mine", ["cat", "dog", "owl"], [3, 4, 5])
    assert [record.labels.tolist() for record in data.records] == [[2], [1], [0]]
    assert available_splits(yaml) == ["train"]
    assert "available: train" in message_of(yaml, "test")
    assert message_of(yaml, "val").endswith("there is no split val; available: train.")


def test_dataset_yaml_chooses_classes_and_their_order(tmp_path):
    data = load_data(coco_yaml(tmp_path, extra="classes: [owl, cat]\n"), "train")
    assert (data.classes, data.category_ids) == (["owl", "cat"], [5, 3])
    assert [record.labels.tolist() for record in data.records] == [[0], [], [1]]
    assert kinds(data) == ["unknown class"]
    data = load_data(tmp_path / "mine.yaml", "train", classes=["dog", "owl", "cat"])
    assert [record.labels.tolist() for record in data.records] == [[1], [0], [2]]


@pytest.mark.parametrize("inline", [False, True])
def test_include(tmp_path, inline):
    names = ["c.jpg", "a", "a", "gone.jpg"]
    if inline:
        yaml = coco_yaml(tmp_path, f", include: [{', '.join(names)}]")
    else:
        yaml = coco_yaml(tmp_path, ", include: lists/train.txt")
        write_text(tmp_path / "set/lists/train.txt", "\r\n".join(names))
    data = load_data(yaml, "train")
    assert [record.path.name for record in data.records] == ["a.jpg", "c.jpg"]
    assert [record.labels.tolist() for record in data.records] == [[2], [0]]
    assert kinds(data) == ["image listed twice", "listed image without annotations"]
    wheres = ["train.include, name 3", "train.include, name 4"] if inline else ["line 3", "line 4"]
    assert [problem.where for problem in data.problems] == wheres


def test_include_prefers_the_whole_name(tmp_path):
    yaml = coco_yaml(tmp_path, ", include: [a.jpg]")
    make_image(tmp_path / "set/pictures/sub/a.jpg")
    images = [image_entry(1, "sub/a.jpg"), image_entry(2, "a.jpg")]
    write_coco(tmp_path / "set" / "all.json", images, [])
    assert [record.image_id for record in load_data(yaml, "train").records] == [2]


def test_list_beside_the_yaml_and_a_root_in_the_home_folder(tmp_path, monkeypatch):
    """As the val.txt of a run, and a YAML written there."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    for name in ("a.jpg", "b.jpg"):
        make_image(tmp_path / "home" / "set" / name)
    write_coco(tmp_path / "home" / "set" / "a.json", [image_entry(1, "a.jpg"), image_entry(2, "b.jpg")], [])
    write_text(tmp_path / "run" / "val.txt", "b.jpg\n")
    entry = "val: {annotations: a.json, include: val.txt}\n"
    yaml = write_text(tmp_path / "run" / "mine.yaml", f"format: coco\nroot: ~/set\n{entry}")
    assert [record.image_id for record in load_data(yaml, "val").records] == [2]
    write_text(tmp_path / "home" / "set" / "val.txt", "a.jpg\n")
    assert [record.image_id for record in load_data(yaml, "val").records] == [1]


def test_include_list_that_is_missing(tmp_path):
    assert "train.txt: there is no such file" in message_of(coco_yaml(tmp_path, ", include: train.txt"))


def test_dataset_yaml_of_voc(tmp_path):
    make_voc(tmp_path / "set", "abc", [("train", "ab")], {"b": object_xml("dog", (1, 1, 9, 9))})
    yaml = write_text(tmp_path / "mine.yaml", "format: voc\nroot: set\nclasses: [dog, cat]\n")
    data = load_data(yaml, "train", on_bad_data="error")
    assert data.classes == ["dog", "cat"]
    assert [record.labels.tolist() for record in data.records] == [[1], [0]]
    assert load_data(yaml, "train", classes=["cat", "dog"]).records[0].labels.tolist() == [0]
    write_text(yaml, "format: voc\nroot: set\nall: {images: JPEGImages}\nsome: {include: [b, c.jpg]}\n")
    assert available_splits(yaml) == ["all", "some"]
    assert [record.image_id for record in load_data(yaml, "all").records] == ["a", "b", "c"]
    assert [record.image_id for record in load_data(yaml, "some", on_bad_data="error").records] == ["b", "c"]


def test_dataset_yaml_of_yolo(tmp_path):
    make_yolo(tmp_path / "set", {"a": "0 0.5 0.5 0.2 0.2", "b": "1 0.5 0.5 0.2 0.2"})
    entries = "train: {images: images/train}\nval: {images: images/train, include: [b.jpg, z]}\n"
    yaml = write_text(tmp_path / "mine.yaml", f"format: yolo\nroot: set\nclasses: [cat, dog]\n{entries}")
    assert [record.labels.tolist() for record in load_data(yaml, "train", on_bad_data="error").records] == [[0], [1]]
    data = load_data(yaml, "val")
    assert [record.labels.tolist() for record in data.records] == [[1]]
    assert kinds(data) == ["missing image"]
    assert load_data(yaml, "train", classes=["dog", "cat"]).records[0].labels.tolist() == [1]
    (tmp_path / "set/labels").rename(tmp_path / "set/texts")
    assert "has a label file" in message_of(yaml)
    write_text(yaml, yaml.read_text().replace("images/train}", "images/train, annotations: texts/train}"))
    assert [record.labels.tolist() for record in load_data(yaml, "train").records] == [[0], [1]]


def test_check_images_off_reads_headers_only(tmp_path):
    root = make_voc(tmp_path, "ab")
    path = make_image(root / "JPEGImages/a.jpg", (600, 400))
    path.write_bytes(path.read_bytes()[:9000])
    assert kinds(load_data(root, "train")) == ["damaged image"]
    data = load_data(root, "train", check_images=False)
    assert [(record.width, record.height) for record in data.records] == [(600, 400), (60, 40)]
    assert kinds(data) == ["image of another size"]
