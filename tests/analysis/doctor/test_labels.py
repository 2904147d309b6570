"""Planted label errors are ranked first, and labels that the detector agrees with are not reported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nextdetr.analysis.doctor.labels import Found, compare_labels
from nextdetr.analysis.doctor.overlap import iou_matrix
from nextdetr.data.records import DetectionData, ImageRecord

CLASSES = ["cat", "dog"]


def record(number: int, generator: np.random.Generator) -> ImageRecord:
    """Four boxes of a quarter of the picture each."""
    corners = np.array([[5, 5], [105, 5], [5, 105], [105, 105]]) + generator.uniform(0, 20, (4, 2))
    boxes = np.concatenate((corners, corners + generator.uniform(40, 70, (4, 2))), axis=1).astype(np.float32)
    labels = generator.integers(0, 2, 4)
    return ImageRecord(Path(f"{number}.jpg"), number, 200, 200, boxes, labels, np.zeros(4, bool), boxes[:, 0])


def answer(truth: ImageRecord, generator: np.random.Generator) -> Found:
    """A good detector: confident detections close to the boxes, and some noise with low confidence."""
    boxes = np.concatenate((truth.boxes + generator.normal(0, 1.5, (4, 4)), [[90, 90, 110, 110]]))
    scores = np.concatenate((generator.uniform(0.7, 0.95, 4), [0.1]))
    order = np.argsort(-scores)
    return Found(boxes[order], scores[order], np.append(truth.labels, 0)[order])


@pytest.fixture
def clean():
    generator = np.random.default_rng(0)
    records = [record(number, generator) for number in range(30)]
    return records, [answer(one, generator) for one in records]


def doubts(records, found, known=("cat", "dog")) -> dict:
    data = DetectionData("set", "train", CLASSES, [1, 2], records, [])
    return {finding.kind: finding for finding in compare_labels({"train": data}, {"train": found}, set(known))}


def without(truth: ImageRecord, at: int) -> ImageRecord:
    keep = np.arange(4) != at
    return replace(
        truth, boxes=truth.boxes[keep], labels=truth.labels[keep], crowd=truth.crowd[keep], areas=truth.areas[keep]
    )


def test_labels_that_agree_are_not_doubted(clean):
    assert doubts(*clean) == {}


def test_planted_errors_are_found_each_by_its_kind(clean):
    records, found = clean
    sure = [int(answer.scores[:4].argmax()) for answer in found]  # what the detector is surest of stands first
    assert set(sure) == {0}
    first = [int(iou_matrix(one.boxes[:1], truth.boxes)[0].argmax()) for one, truth in zip(found, records, strict=True)]
    highest = np.argsort([-one.scores[0] for one in found])[:4].tolist()  # sure enough whatever the median is
    missing, swapped, moved, invented = highest
    changed = list(records)
    changed[missing] = without(records[missing], first[missing])
    labels = records[swapped].labels.copy()
    labels[first[swapped]] = 1 - labels[first[swapped]]
    changed[swapped] = replace(records[swapped], labels=labels)
    boxes = records[moved].boxes.copy()
    boxes[first[moved], :2] += 0.3 * (boxes[first[moved], 2:] - boxes[first[moved], :2])
    changed[moved] = replace(records[moved], boxes=boxes)
    boxes = np.concatenate((records[invented].boxes, np.array([[80, 84, 128, 196]], dtype=np.float32)))
    boxes[4] = [82, 2, 98, 198]
    changed[invented] = replace(
        records[invented], boxes=boxes, labels=np.append(records[invented].labels, 0), crowd=np.zeros(5, bool),
        areas=boxes[:, 0],
    )  # fmt: skip
    told = doubts(changed, found)
    assert {kind: finding.images for kind, finding in told.items()} == {
        "label error: no label": [f"{missing}.jpg"],
        "label error: another class": [f"{swapped}.jpg"],
        "label error: another place": [f"{moved}.jpg"],
        "label error: nothing there": [f"{invented}.jpg"],
    }
    detail = told["label error: another class"].details[0]
    assert detail["found_class_name"] == CLASSES[records[swapped].labels[first[swapped]]] != detail["class_name"]
    assert told["label error: no label"].details[0]["box"] is None


def test_the_likeliest_error_comes_first(clean):
    records, found = clean
    changed = [without(one, int(iou_matrix(answer.boxes[:1], one.boxes)[0].argmax())) for one, answer in
               zip(records[:10], found[:10], strict=True)]  # fmt: skip
    told = doubts([*changed, *records[10:]], found)["label error: no label"]
    scores = [detail["score"] for detail in told.details]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) >= 5
    assert told.severity == "warning"


def test_a_detector_of_two_minds_does_not_doubt_a_class(clean):
    records, found = clean
    both = [
        Found(np.repeat(one.boxes, 2, axis=0), np.repeat(one.scores, 2) * np.tile([1.0, 0.9], len(one.scores)),
              np.repeat(one.labels, 2) ^ np.tile([1, 0], len(one.labels)))
        for one in found
    ]  # fmt: skip
    assert "label error: another class" not in doubts(records, both)


def test_many_doubts_are_the_detector_s_fault(clean):
    records, found = clean
    elsewhere = [replace(one, boxes=one.boxes + np.array([0, 60, 0, 60])) for one in found]
    told = doubts(records, [*found[:10], *elsewhere[10:]])
    assert {finding.severity for finding in told.values()} == {"note"}
    assert "weak detector" in told["label error: no label"].message


def test_boxes_of_classes_that_the_detector_does_not_know_are_not_doubted(clean):
    records, found = clean
    cats = [Found(one.boxes[one.labels == 0], one.scores[one.labels == 0], one.labels[one.labels == 0]) for one in found]
    assert doubts(records, cats, known=["cat"]) == {}


def test_overlap():
    found = iou_matrix(np.array([[0, 0, 2, 2], [5, 5, 5, 9]]), np.array([[1, 0, 3, 2], [0, 0, 2, 2], [9, 9, 10, 10]]))
    assert found == pytest.approx(np.array([[1 / 3, 1, 0], [0, 0, 0]]))
    assert iou_matrix(np.zeros((0, 4)), np.zeros((3, 4))).shape == (0, 3)


def test_an_object_in_a_crowd_of_its_class_needs_no_box(clean):
    records, found = clean
    missing = int(np.argmax([answer.scores[0] for answer in found]))
    at = int(iou_matrix(found[missing].boxes[:1], records[missing].boxes)[0].argmax())
    label = int(records[missing].labels[at])
    told = []
    for crowd in (label, 1 - label):
        truth = without(records[missing], at)
        boxes = np.concatenate((truth.boxes, np.array([[0, 0, 200, 200]], np.float32)))
        changed = list(records)
        changed[missing] = replace(
            truth, boxes=boxes, labels=np.append(truth.labels, crowd), crowd=np.arange(4) == 3, areas=boxes[:, 0]
        )
        told.append(list(doubts(changed, found)))
    assert told == [[], ["label error: no label"]]
