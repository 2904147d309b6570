"""Kinds of error: small examples, and equality with tidecv, the implementation of TIDE's authors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nextdetr.report.tide import KINDS, tide
from tests.reference.test_coco_oracle import records_of
from tests.report.problems import random_split

NAMES = dict(zip(KINDS, ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"), strict=True))


def tidecv_says(data, found):
    tidecv = pytest.importorskip("tidecv", reason="pip install 'nextdetr[test]' brings it")
    truth, results = tidecv.Data("truth"), tidecv.Data("results", max_dets=100)
    for position, record in enumerate(data.records):
        truth.add_image(position, str(position))
        for (x1, y1, x2, y2), label, crowd in zip(
            record.boxes.astype(float).tolist(), record.labels.tolist(), record.crowd.tolist(), strict=True
        ):
            box = [x1, y1, x2 - x1, y2 - y1]
            if crowd:
                truth.add_ignore_region(position, label, box)
            else:
                truth.add_ground_truth(position, label, box)
        for (x1, y1, x2, y2), score, label in zip(
            *(part.tolist() for part in found.get(position, [np.zeros(0)] * 3)), strict=True
        ):
            results.add_detection(position, label, score, [x1, y1, x2 - x1, y2 - y1])
    run = tidecv.TIDE().evaluate(truth, results, mode=tidecv.TIDE.BOX)
    costs = {type_.short_name: value for type_, value in run.fix_main_errors().items()}
    special = {type_.short_name: value for type_, value in run.fix_special_errors().items()}
    return run.ap, costs, {type_.short_name: count for type_, count in run.count_errors().items()}, special


def compare(data, found):
    ours = tide(data.records, found, len(data.classes))
    ap, costs, counts, special = tidecv_says(data, found)
    assert 100 * ours.ap50 == pytest.approx(ap, abs=1e-9)
    assert {NAMES[name]: count for name, count in ours.counts.items()} == counts
    assert {NAMES[name]: 100 * cost for name, cost in ours.costs.items()} == pytest.approx(costs, abs=1e-9)
    assert {"FalsePos": 100 * ours.false_positives, "FalseNeg": 100 * ours.false_negatives} == pytest.approx(
        special, abs=1e-9
    )
    return ours


@pytest.mark.parametrize("seed", range(5))
def test_tidecv_on_random_detections(seed):
    ours = compare(*random_split(seed, crowds=0.25 if seed == 4 else 0.1))
    assert all(ours.counts.values())  # the problem has errors of every kind


@pytest.mark.shared_data
def test_tidecv_on_the_oracle(shared_data):
    data = records_of(json.loads((shared_data / "coco_eval" / "instances_val2014_100.json").read_text()))
    results = json.loads((shared_data / "coco_eval" / "instances_val2014_fakebbox100_results.json").read_text())
    found = {}
    for position, record in enumerate(data.records):
        rows = [row for row in results if row["image_id"] == record.image_id]
        boxes = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([data.category_ids.index(row["category_id"]) for row in rows], np.int64)
        found[position] = (boxes, np.array([row["score"] for row in rows]), labels)
    compare(data, found)


def test_one_error_of_each_kind():
    data, _ = random_split(0, images=1)
    record = type(data.records[0])(
        Path("a.jpg"), 1, 400, 100,
        np.array([[0, 0, 50, 50], [100, 0, 150, 50], [200, 0, 250, 50], [300, 0, 350, 50]], np.float32),
        np.array([0, 1, 2, 0]), np.zeros(4, bool), np.full(4, 2500, np.float32),
    )  # fmt: skip
    boxes = np.array(
        [[0, 0, 50, 50], [0, 0, 50, 49], [100, 0, 150, 50], [200, 0, 250, 20], [200, 0, 250, 20], [150, 60, 190, 90]],
        np.float32,
    )
    scores, labels = np.linspace(0.9, 0.4, 6).astype(np.float32), np.array([0, 0, 0, 2, 1, 0])
    ours = tide([record], {0: (boxes, scores, labels)}, 3)
    assert ours.counts == {"class": 1, "location": 1, "both": 1, "duplicate": 1, "background": 1, "missed": 1}
