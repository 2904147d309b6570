"""Matches of the report: AP from them is the evaluator's, and AP of a sample is that of the sample's images."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from nextdetr.engine.evaluate import CocoEvaluator
from nextdetr.postprocess import Detected
from nextdetr.report.matching import average_precision, box_ious, match
from tests.report.problems import random_split


def evaluator_of(data, found):
    evaluator = CocoEvaluator(data)
    for position, (boxes, scores, labels) in found.items():
        evaluator.update(position, Detected(boxes, scores, labels))
    return evaluator


@pytest.mark.parametrize("seed", range(6))
def test_ap_of_the_matches_is_the_evaluators(seed):
    data, found = random_split(seed)
    if seed > 3:  # equal scores
        found = {place: (boxes, np.round(scores, 1), labels) for place, (boxes, scores, labels) in found.items()}
    matches = match(data.records, found, len(data.classes))
    expected = evaluator_of(data, found).summarize().metrics["AP"]
    assert average_precision(matches) == pytest.approx([expected], abs=1e-9)


def test_ap_of_a_sample_is_that_of_its_images():
    data, found = random_split(1, images=12)
    matches = match(data.records, found, len(data.classes))
    picks = np.random.default_rng(0).integers(0, 12, (3, 12))
    weights = np.stack([np.bincount(pick, minlength=12) for pick in picks])
    expected = []
    for pick in picks:
        records = [dataclasses.replace(data.records[place], image_id=number) for number, place in enumerate(sorted(pick))]
        sample = {number: found[place] for number, place in enumerate(sorted(pick)) if place in found}
        own = dataclasses.replace(data, records=records)
        expected.append(evaluator_of(own, sample).summarize().metrics["AP"])
    assert average_precision(matches, weights) == pytest.approx(expected, abs=1e-9)


def test_a_sample_without_boxes_has_no_ap():
    data, found = random_split(0)
    empty = [place for place, record in enumerate(data.records) if not len(record.boxes)]
    weights = np.zeros((1, len(data.records)), np.int64)
    weights[0, empty] = 1
    assert np.isnan(average_precision(match(data.records, found, 4), weights)).all()


def test_iou_with_a_crowd_is_the_share_that_it_covers():
    found, boxes = np.array([[0, 0, 10, 10]]), np.array([[5, 0, 105, 10], [5, 0, 105, 10], [20, 20, 30, 30]])
    assert box_ious(found, boxes, np.array([False, True, False])) == pytest.approx(np.array([[50 / 1050, 0.5, 0.0]]))
