"""Several data sets as one: their classes, splits and images, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from nextdetr.data.joined import is_part_of, joined_yaml, name_of, sets_of, sets_text
from nextdetr.data.sources import available_splits, load_data, read_raw, require_splits
from nextdetr.errors import DataError

from .files import make_image, make_voc, make_yolo, write_text

LABELS = "1 0.5 0.5 0.2 0.2\n0 0.25 0.5 0.1 0.2\n"
NAMES = "names: [bird, cat]\n"


@pytest.fixture
def sets(tmp_path):
    """A VOC set of cats with val, and a YOLO set of birds and cats without."""
    first = make_voc(tmp_path / "first", splits=(("train", ("a",)), ("val", ("b",))))
    make_image(first / "JPEGImages" / "b.jpg", (72, 40))
    make_yolo(tmp_path / "second", {"x": LABELS}, size=(64, 40), yaml=NAMES)
    return [first, tmp_path / "second"]


def test_classes_are_joined_by_name_and_splits_by_those_that_there_are(sets):
    data = load_data(sets, "train")
    assert data.classes == ["cat", "bird"]
    assert [record.labels.tolist() for record in data.records] == [[0], [0, 1]]
    assert [record.width for record in data.records] == [60, 64]
    assert [str(record.image_id)[:2] for record in data.records] == ["1/", "2/"]
    assert (data.name, data.split, len(data.category_ids), data.own_ids) == ("first and second", "train", 2, False)
    assert data.recognised == f"voc: Annotations/, JPEGImages/ ({sets[0]}) and yolo: data.yaml ({sets[1]})"
    assert available_splits(sets) == ["train", "val"]
    assert require_splits(sets)
    val = load_data(sets, "val", classes=data.classes)
    assert ([record.path.name for record in val.records], val.classes) == (["b.jpg"], data.classes)
    with pytest.raises(DataError, match=r"first and .*second: there is no split test; available: train, val\.$"):
        load_data(sets, "test")
    assert load_data(sets[:1], "train").classes == ["cat"]


def test_ids_of_images_are_the_same_in_every_split(sets, tmp_path):
    make_yolo(tmp_path / "third", {"y": LABELS}, size=(68, 40), split="val", yaml=NAMES)
    both = [sets[1], tmp_path / "third", sets[0]]
    ids = [record.image_id for split in ("train", "val") for record in load_data(both, split).records]
    assert ids == ["1/images/train/x.jpg", "3/a", "2/images/val/y.jpg", "3/b"]


def test_a_class_of_one_set_only_is_said(sets):
    (note,) = load_data(sets, "train").notes
    assert note.startswith(f"Not every class is in every data set: {sets[0]} has no bird. Such an object has no box there")
    assert load_data(sets[::-1], "train").classes == ["bird", "cat"]
    make_yolo(sets[1], {"x": LABELS}, size=(64, 40), yaml="names: [dog, cat]\n")
    make_yolo(sets[1].with_name("third"), {"y": "0 0.5 0.5 0.2 0.2"}, size=(68, 40), yaml="names: [cat]\n")
    (note,) = load_data([*sets, sets[1].with_name("third")], "train").notes
    assert f"{sets[0]} has no dog; {sets[1].with_name('third')} has no dog." in note
    assert load_data(sets[:1], "train").notes == ()


def test_an_image_in_two_sets_counts_once_with_the_labels_of_the_last(sets):
    make_image(sets[1] / "images" / "train" / "x.jpg", (60, 40))  # the same file as the first set's
    data = load_data(sets, "train")
    assert [record.path for record in data.records] == [sets[1] / "images" / "train" / "x.jpg"]
    assert data.notes[0] == f"1 image of {sets[0]} is also in {sets[1]}, whose labels are used for it"
    assert [record.path.name for record in load_data(sets[::-1], "train").records] == ["a.jpg"]


def test_an_image_that_another_set_holds_out_is_not_trained_on(sets):
    make_image(sets[1] / "images" / "train" / "x.jpg", (72, 40))  # the same file as in the first set's val
    data = load_data(sets, "train")
    assert [record.path.name for record in data.records] == ["a.jpg"]
    assert data.notes[0] == f"1 image of {sets[1]} left out: {sets[0]} has the same in a split for scores"
    assert [record.path.name for record in load_data(sets, "val").records] == ["b.jpg"]


def test_corrections_of_training_images_count_though_trainval_has_them(sets):
    """VOC's trainval is no split for scores: it is train and val together."""
    write_text(sets[0] / "ImageSets" / "Main" / "trainval.txt", "a\nb\n")
    make_image(sets[1] / "images" / "train" / "x.jpg", (60, 40))  # the same file as a.jpg
    data = load_data(sets, "train")
    assert [record.path.name for record in data.records] == ["x.jpg"]
    assert data.notes[0] == f"1 image of {sets[0]} is also in {sets[1]}, whose labels are used for it"
    make_image(sets[1] / "images" / "train" / "x.jpg", (72, 40))  # the same file as b.jpg, of val
    assert [record.path.name for record in load_data(sets, "train").records] == ["a.jpg"]


def test_of_given_classes_one_set_may_have_none(sets):
    data = load_data(sets, "train", classes=["bird"])
    assert [record.labels.tolist() for record in data.records] == [[], [0]]
    assert [record.boxes.shape for record in data.records] == [(0, 4), (1, 4)]
    with pytest.raises(DataError, match=r"second: have none of the classes asked for \(dog\); their own are cat, bird"):
        load_data(sets, "train", classes=["dog"])


def test_a_yaml_lists_several(sets, tmp_path):
    file = write_text(tmp_path / "both.yaml", "format: joined\nsets: [first, second/data.yaml]\n")
    assert sets_of(file) == [sets[0], sets[1] / "data.yaml"]
    assert sets_of([sets[0], file]) == [sets[0], sets[1] / "data.yaml"]  # each once
    assert name_of(file) == "first and second"
    assert is_part_of(sets[1], "first and second")
    assert is_part_of(sets[::-1], "first and second")
    assert not is_part_of(sets, "first")
    assert sets_text(file) == str(file)
    assert sets_text(["a", "b", Path("c")]) == "a, b and c"
    assert len(load_data(file, "train").records) == 2
    run = write_text(tmp_path / "run" / "data.yaml", joined_yaml(sets)).parent
    assert sets_of(run) == sets_of(run / "data.yaml") == sets


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "sets must be a list of data sets"),
        ("sets: first\n", "sets must be a list of data sets"),
        ("sets: [first]\ntrain: images\n", "format joined takes sets, and no train"),
        ("sets: [first, gone]\n", "gone: there is no such file or folder"),
        ("sets: [first, self.yaml]\n", "it joins data sets, which is not possible here"),
    ],
)
def test_a_yaml_with_a_mistake_is_refused(sets, tmp_path, text, message):
    file = write_text(tmp_path / "self.yaml", f"format: joined\n{text}")
    with pytest.raises(DataError, match=message):
        load_data(file, "train")


def test_where_one_set_is_needed_several_are_refused(sets, tmp_path):
    file = write_text(tmp_path / "both.yaml", joined_yaml(sets))
    with pytest.raises(DataError, match="name one of those that it lists"):
        read_raw(file, "train")


def test_a_split_that_is_not_there_does_not_stop_training_on_the_others(sets):
    """Roboflow names test/images in data.yaml though there are none; a training on this set alone does not care."""
    write_text(sets[1] / "data.yaml", f"path: .\ntrain: images/train\ntest: ../test/images\n{NAMES}")
    data = load_data(sets, "train")
    assert [record.width for record in data.records] == [60, 64]
    assert data.notes[0].startswith(
        f"Images of the split test of {sets[1]} are not looked for in the other sets, since: {sets[1] / 'data.yaml'}: test "
        "names ../test/images, which does not exist"
    )
