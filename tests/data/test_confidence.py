"""Boxes found by a detector: their confidence is kept, a limit drops some, and convert writes it back."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nextdetr.cli.main import run
from nextdetr.data.convert import convert
from nextdetr.data.sources import load_data
from nextdetr.errors import DataError

from .files import box_entry, image_entry, make_image, write_coco, write_text
from .small_sets import CAT, DOG

YAML = "train: images\nnames: [cat, dog]\n"


@pytest.fixture
def labels(tmp_path):
    """Three boxes, one of them drawn manually, and one image without a box."""
    for name in ("a", "b"):
        make_image(tmp_path / "set" / "images" / f"{name}.jpg")
    write_text(tmp_path / "set" / "labels" / "a.txt", f"{CAT} 0.9\n{DOG}\n{DOG.replace('0.5', '0.6')} 0.3\n")
    write_text(tmp_path / "set" / "data.yaml", YAML)
    return tmp_path / "set"


def found(data) -> list[float | None]:
    record = data.records[0]
    assert len(record.boxes) == len(record.labels) == len(record.areas) == len(record.crowd)
    if record.confidence is None:
        return [None] * len(record.boxes)
    assert record.confidence.dtype == np.float32
    return [None if np.isnan(value) else round(float(value), 6) for value in record.confidence]


def test_every_box_counts_unless_a_limit_is_set(labels):
    data = load_data(labels, "train", on_bad_data="error")
    assert found(data) == [0.9, None, 0.3]
    assert data.records[1].confidence is None
    (problem,) = data.problems
    assert problem.message == (
        "2 of 3 boxes have a confidence (0.3 to 0.9), as a detector's own have; all are used; min_confidence sets a limit"
    )
    assert (problem.where, problem.kind) == ("line 1", "confidence in labels")
    write_text(labels / "data.yaml", f"{YAML}min_confidence: 0.5\n")
    data = load_data(labels, "train")
    assert found(data) == [0.9, None]
    assert data.records[0].labels.tolist() == [0, 1]
    assert "the 1 below 0.5 are left out" in data.problems[0].message
    assert found(load_data(labels, "train", min_confidence=0.95)) == [None]  # what is asked for counts
    assert found(load_data(labels, "train", min_confidence=0.3)) == [0.9, None, 0.3]


@pytest.mark.parametrize("value", ["2", "-0.1", "high", "[0.5]", "nan"])
def test_limit_that_is_no_confidence(labels, value):
    write_text(labels / "data.yaml", f"{YAML}min_confidence: {value}\n")
    with pytest.raises(DataError, match=r"min_confidence is .*; it must be a number from 0 to 1"):
        load_data(labels, "train")


def test_limit_in_a_dataset_yaml_and_problems_of_the_boxes_that_stay(labels):
    write_text(labels / "labels" / "a.txt", "0 0.5 0.5 0.2 0 0.9\n0 0.5 0.5 0.2 0 0.2\n" + f"{CAT} 0.8\n")
    (labels / "data.yaml").unlink()
    yaml = write_text(
        labels / "set.yaml", "format: yolo\nclasses: [cat, dog]\ntrain: {images: images}\nmin_confidence: 0.5\n"
    )
    data = load_data(yaml, "train")
    assert found(data) == [0.8]
    assert [(problem.kind, problem.where) for problem in data.problems] == [
        ("confidence in labels", "line 1"), ("box without area", "line 1"),
    ]  # fmt: skip


def coco_rows(**score):
    rows = [box_entry(1, 1, 1, [5, 5, 20, 20], **score), box_entry(2, 1, 2, [1, 1, 9, 9])]
    return [image_entry(1, "a.jpg")], rows


@pytest.mark.parametrize(
    ("score", "expected"), [(0.25, 0.25), ("0.25", 0.25), (0, 0.0), (None, None), (17, None), (1.0, None), ([], None)]
)
def test_scores_of_coco_annotations(tmp_path, score, expected):
    make_image(tmp_path / "train" / "a.jpg")
    write_coco(tmp_path / "annotations" / "instances_train.json", *coco_rows(score=score))
    data = load_data(tmp_path, "train")
    assert found(data) == [expected, None]
    assert len(data.problems) == (expected is not None)


def test_results_that_do_not_say_what_they_are_of(tmp_path):
    make_image(tmp_path / "b" / "a.jpg")
    row = {"image_id": 1, "category_id": 0, "bbox": [1, 2, 3, 4], "score": 0.5}
    path = write_text(tmp_path / "r.json", json.dumps([row]))
    with pytest.raises(DataError, match=r"r\.json, row 1: it has no file_name, so nothing says which image is meant"):
        load_data(path, "train")
    yaml = write_text(tmp_path / "set.yaml", "format: coco\ntrain: {images: b, annotations: r.json}\n")
    write_text(path, json.dumps([{**row, "file_name": "b/a.jpg"}]))
    with pytest.raises(DataError, match="row 1: it has no category_name"):
        load_data(yaml, "train")
    named = [{**row, "file_name": "b/a.jpg", "category_name": name, "category_id": n} for n, name in ((7, "x"), (3, "y"))]
    write_text(path, json.dumps(named))
    data = load_data(yaml, "train")  # predict was given b, from another folder
    assert (data.classes, data.category_ids, data.own_ids, found(data)) == (["y", "x"], [3, 7], False, [0.5, 0.5])
    write_text(path, "[[1]]")
    with pytest.raises(DataError, match="not a COCO file, which is an object"):
        load_data(yaml, "train")


@pytest.mark.parametrize("to", ["yolo", "coco", "voc"])
def test_convert_writes_the_confidence_back(labels, tmp_path, to):
    result = convert(labels, to, tmp_path / to)
    before, after = load_data(labels, "train"), load_data(tmp_path / to, "train", on_bad_data="error")
    np.testing.assert_array_equal(after.records[0].boxes, before.records[0].boxes)
    kept = to != "voc"
    assert result.confidences_left_out == (0 if kept else 2)
    if kept:
        np.testing.assert_array_equal(after.records[0].confidence, before.records[0].confidence)
    assert (after.records[0].confidence is None) == (not kept)
    assert convert(labels, to, tmp_path / "less", min_confidence=0.5).splits["train"]["boxes"] == 2


def test_commands_take_a_limit(labels, tmp_path, capsys):
    assert run(["convert", str(labels), "--to", "voc", "--output", str(tmp_path / "n"), "--min-confidence", "0.5"]) == 0
    told = capsys.readouterr()
    assert "the 1 below 0.5 are left out" in told.err
    assert "left out: the confidence of 1 box, for which voc has no place" in told.err
    assert run(["convert", str(labels), "--to", "voc", "--output", str(tmp_path / "m"), "--min-confidence", "2"]) == 2


def test_flat_label_folder_of_images_of_one_name(tmp_path):
    for name in ("1/a", "2/a"):
        make_image(tmp_path / f"{name}.jpg")
    write_text(tmp_path / "labels" / "a.txt", CAT)
    write_text(tmp_path / "list.txt", "1/a.jpg\n2/a.jpg\n")
    yaml = write_text(
        tmp_path / "set.yaml", "format: yolo\nclasses: [cat]\ntrain: {images: list.txt, annotations: labels}\n"
    )
    with pytest.raises(DataError, match="2 images of the split are called a, and nothing says whose labels"):
        load_data(yaml, "train")
    write_text(tmp_path / "list.txt", "1/a.jpg\n")
    assert len(load_data(yaml, "train").records[0].boxes) == 1
