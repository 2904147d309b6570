"""Data sets survive ``convert`` unchanged: images, order of classes, every digit of boxes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from nextdetr.cli.main import run
from nextdetr.data import convert as convert_module
from nextdetr.data.convert import convert
from nextdetr.data.sources import available_splits, load_data
from nextdetr.errors import ConfigError, DataError, WriteError

from .files import box_entry, image_entry, make_image, make_voc, make_yolo, write_coco, write_text

CATEGORIES = ((7, "z b"), (3, "a <&> ü"), (90, "never"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A COCO set: two splits with equal names, suffixes that differ, a background image, a crowd, odd numbers."""
    root = tmp_path_factory.mktemp("source") / "set"
    generator = np.random.default_rng(0)
    number = 0
    for split, names in (("train", ("a.jpg", "a.png", "sub/ü 1.jpg", "empty.jpg")), ("val", ("a.jpg", "b.c.jpg"))):
        images, rows = [], []
        for name in names:
            number += 1
            make_image(root / split / name, (61, 43 + number))
            images.append(image_entry(10 * number, name, (61, 43 + number)))
            for _ in range(0 if name == "empty.jpg" else 6):
                x, y = generator.uniform(0, 30, 2)
                width, height = generator.uniform(1, 13, 2)
                rows.append(box_entry(len(rows) + 1, 10 * number, int(generator.choice([7, 3])), [x, y, width, height]))
        rows[0]["bbox"], rows[1]["area"] = [0, 0, 61, 44], 12.25
        rows.append(box_entry(99, 10 * number, 3, [1, 2, 20, 20]) | {"iscrowd": 1})
        write_coco(root / "annotations" / f"instances_{split}.json", images, rows, CATEGORIES)
    return root


def described(data, *, crowds: bool):
    """Everything that must be equal, by image: the image file, and boxes, labels, crowds and areas of the kinds kept."""
    found = []
    for record in data.records:
        keep = np.ones(len(record.labels), bool) if crowds else ~record.crowd
        values = (record.boxes[keep].tolist(), record.labels[keep].tolist(), record.crowd[keep].tolist())
        areas = record.areas[keep].tolist() if crowds else None
        found.append((record.path.read_bytes(), record.width, record.height, *values, areas))
    return sorted(found)


@pytest.mark.parametrize("images", ["copy", "link"])
@pytest.mark.parametrize("to", ["coco", "yolo", "voc"])
def test_what_is_written_is_read_again_as_it_was(source, tmp_path, to, images):
    result = convert(source, to, tmp_path / "new", images=images)
    assert available_splits(tmp_path / "new") == ["train", "val"]
    for split in ("train", "val"):
        before, after = load_data(source, split), load_data(tmp_path / "new", split, on_bad_data="error")
        assert after.classes == before.classes == [name for _, name in CATEGORIES]
        assert described(after, crowds=to == "coco") == described(before, crowds=to == "coco")
        if to == "coco":
            assert after.category_ids == before.category_ids == [7, 3, 90]
            assert [record.image_id for record in after.records] == [record.image_id for record in before.records]
        assert all(record.path.is_symlink() == (images == "link") for record in after.records)
    kept = to == "coco"
    assert result.splits == {"train": {"images": 4, "boxes": 18 + kept}, "val": {"images": 2, "boxes": 12 + kept}}
    assert (result.crowds_left_out, result.recognised) == (0 if kept else 2, "coco: annotations/instances_train.json")


def test_classes_of_all_splits_are_kept(tmp_path):
    header = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
    for split, name in (("train", "owl"), ("val", "cat")):
        make_image(tmp_path / "set" / split / f"{split}.jpg")
        write_text(tmp_path / "set" / split / "_annotations.csv", f"{header}{split}.jpg,60,40,{name},1,2,3,4\n")
    for split, category in (("train", ((5, "owl"),)), ("val", ((4, "cat"), (5, "owl")))):
        path = tmp_path / "coco" / "annotations" / f"instances_{split}.json"
        make_image(tmp_path / "coco" / split / "x.jpg")
        write_coco(path, [image_entry(1, "x.jpg")], [box_entry(1, 1, category[0][0], [1, 2, 3, 4])], category)
    for source in ("set", "coco"):
        assert convert(tmp_path / source, "yolo", tmp_path / f"{source}-yolo").classes == ["owl", "cat"]
        val = load_data(tmp_path / f"{source}-yolo", "val", on_bad_data="error")
        assert (val.classes, [record.labels.tolist() for record in val.records]) == (["owl", "cat"], [[1]])


def test_output_that_holds_something_and_a_split_that_yolo_lacks(source, tmp_path):
    write_text(tmp_path / "new" / "mine.txt", "mine")
    with pytest.raises(ConfigError, match="holds something already; name a new folder with --output"):
        convert(source, "coco", tmp_path / "new")
    with pytest.raises(ConfigError, match="kitti: no format that is written here; choose from coco, yolo, voc"):
        convert(source, "kitti", tmp_path / "other")
    assert not (tmp_path / "other").exists()
    yaml = write_text(tmp_path / "set.yaml", f"format: coco\nroot: {source.as_posix()}\n"
                      "some: {images: train, annotations: annotations/instances_train.json}\n")  # fmt: skip
    with pytest.raises(DataError, match="would miss the split some; name the splits accordingly"):
        convert(yaml, "yolo", tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert list(convert(yaml, "voc", tmp_path / "voc").splits) == ["some"]
    assert available_splits(tmp_path / "voc") == ["some"]


def test_failure_leaves_nothing(source, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(convert_module.WRITERS, "coco", full)
    with pytest.raises(WriteError, match=r"cannot be written \(No space left on device\); nothing is left of it"):
        convert(source, "coco", tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_command(source, tmp_path, capsys):
    assert run(["convert", str(source), "--to", "voc", "--output", str(tmp_path / "new"), "--json"]) == 0
    told = capsys.readouterr()
    result = json.loads(told.out)
    assert (result["command"], result["to"], result["crowds_left_out"]) == ("convert", "voc", 2)
    assert result["splits"]["train"] == {"images": 4, "boxes": 18}
    assert "Data set read as coco: annotations/instances_train.json\n" in told.err
    assert "left out: 2 crowds, for which voc has no place" in told.err
    assert run(["convert", str(source), "--output", str(tmp_path / "new2")]) == 2
    assert "give --to coco, yolo or voc" in capsys.readouterr().err


def test_sets_in_several_folders_keep_labels_and_images(tmp_path):
    """Programs for YOLO replace the last folder called images, and list no hidden folders."""
    for number, folder in enumerate((tmp_path / "x" / "y" / "a", tmp_path / "x" / "y" / ".b", tmp_path / "c")):
        make_yolo(folder, {"p": "0 0.5 0.5 0.2 0.2\n"}, size=(60 + number, 40))
    joined = write_text(tmp_path / "x" / "y" / "all.yaml", "format: joined\nsets: [a, .b, ../../c]\n")
    before = sorted(tmp_path.rglob("*"))
    for to in ("yolo", "coco", "voc"):
        assert convert(joined, to, tmp_path / to / "new").splits == {"train": {"images": 3, "boxes": 3}}
        after = load_data(tmp_path / to / "new", "train", on_bad_data="error")
        assert sorted((record.width, len(record.labels)) for record in after.records) == [(60, 1), (61, 1), (62, 1)]
        assert all(path in before or (tmp_path / to) in (path, *path.parents) for path in tmp_path.rglob("*"))
        shutil.rmtree(tmp_path / to)


def test_images_keep_their_folders_whether_the_path_is_relative_or_not(source, tmp_path, monkeypatch):
    monkeypatch.chdir(source.parent)
    for name, path in (("absolute", source), ("relative", source.name)):
        convert(path, "voc", tmp_path / name)
        assert (tmp_path / name / "JPEGImages" / "sub" / "ü 1.jpg").is_file()


def test_names_that_are_not_utf8_survive(tmp_path):
    """A list of classes may be in another encoding; an XML with such bytes is read by no program, nor a checkpoint."""
    make_yolo(tmp_path / "set", {"p": "0 0.5 0.5 0.2 0.2\n1 0.3 0.3 0.2 0.2\n"}, yaml="")
    (tmp_path / "set" / "data.yaml").unlink()
    (tmp_path / "set" / "classes.txt").write_bytes(b"m\xfcnze\ncat\n")
    for to in ("coco", "yolo", "voc"):
        convert(tmp_path / "set", to, tmp_path / to)
        data = load_data(tmp_path / to, "train", on_bad_data="error")
        assert (data.classes, [record.labels.tolist() for record in data.records]) == (["m\\xfcnze", "cat"], [[0, 1]])
    assert load_data(tmp_path / "set", "train", classes=["cat", "m\udcfcnze"]).records[0].labels.tolist() == [1, 0]


def test_an_empty_folder_is_filled_where_it_is(source, tmp_path, monkeypatch):
    """Neither a mounted disk nor the working folder can be replaced."""
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    assert convert(source, "voc", ".").splits["val"] == {"images": 2, "boxes": 12}
    assert sorted(path.name for path in tmp_path.rglob("*") if path.parent.name == "new") == [
        "Annotations", "ImageSets", "JPEGImages", "dataset.yaml",
    ]  # fmt: skip


def test_what_a_killed_conversion_leaves_is_removed_by_the_next(source, tmp_path):
    code = (
        "import os, sys; from nextdetr.data import convert; convert.WRITERS['coco'] = lambda *_: os._exit(1); "
        "convert.convert(sys.argv[1], 'coco', sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", code, source, tmp_path / "new"], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".new.")
    convert(source, "coco", tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("to", ["yolo", "voc"])
def test_an_image_without_an_ending_gets_one_where_folders_are_listed(tmp_path, to):
    (tmp_path / "set").mkdir()
    make_image(tmp_path / "a.png").rename(tmp_path / "set" / "0a.1f")
    write_coco(tmp_path / "set" / "result.json", [image_entry(1, "0a.1f")], [box_entry(1, 1, 2, [1, 2, 3, 4])])
    convert(tmp_path / "set", to, tmp_path / "new")
    (record,) = load_data(tmp_path / "new", "train", on_bad_data="error").records
    assert (record.path.name, record.labels.tolist()) == ("0a.1f.png", [1])


def test_spaces_around_names_are_no_loss(tmp_path):
    for name in (" a .jpg", "a.jpg", "b/c\t.jpg"):
        make_image(tmp_path / "set" / name)
    names = [" a .jpg", "a.jpg", "b/c\t.jpg"]
    images = [image_entry(number, name) for number, name in enumerate(names, start=1)]
    write_coco(tmp_path / "set" / "result.json", images, [box_entry(n, n, 1, [n, 2, 3, 4]) for n in (1, 2, 3)])
    for to in ("coco", "yolo", "voc"):
        convert(tmp_path / "set", to, tmp_path / to)
        after = load_data(tmp_path / to, "train", on_bad_data="error")
        assert sorted(float(record.boxes[0, 0]) for record in after.records) == [1, 2, 3]


def test_advice_on_other_splits_fits_the_format(tmp_path):
    image = '<image id="0" name="a.jpg" subset="{}"><box label="cat" xtl="1" ytl="2" xbr="3" ybr="4"/></image>'
    write_text(tmp_path / "set" / "a.xml", f"<annotations>{image.format('batch 1')}</annotations>")
    make_image(tmp_path / "set" / "a.jpg")
    with pytest.raises(DataError, match=r"would miss the split batch 1; name .* a dataset YAML of what convert --to coco"):
        convert(tmp_path / "set", "yolo", tmp_path / "new")


def test_images_of_several_splits_are_written_once(tmp_path):
    """As copies they would be training images of which another split has the same, and trainval no union for YOLO."""
    make_voc(tmp_path / "set", splits=(("train", ("a",)), ("val", ("b",)), ("trainval", ("a", "b"))))
    for to in ("coco", "voc"):
        new = tmp_path / to
        assert convert(tmp_path / "set", to, new).splits["trainval"] == {"images": 2, "boxes": 2}
        assert len(list(new.rglob("*.jpg"))) == 2
        paths = [{record.path for record in load_data(new, split).records} for split in ("train", "val", "trainval")]
        assert paths[0] | paths[1] == paths[2]
        assert convert(new, "yolo", tmp_path / f"{to}-yolo").splits_left_out == ["trainval"]
