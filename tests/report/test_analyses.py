"""Thresholds, calibration, confusion, and the difference of two detectors, on problems with a known answer."""

from __future__ import annotations

import numpy as np
import pytest

from nextdetr.confidence import DEFAULT, LEAST_F1, Thresholds
from nextdetr.report.bootstrap import enough_images, paired_difference
from nextdetr.report.calibration import calibrate_bins
from nextdetr.report.confusion import confusion_matrix, cost, pair
from nextdetr.report.figures import recall_figure
from nextdetr.report.matching import Matches, average_precision, match
from nextdetr.report.thresholds import GRID, best_thresholds, curves
from tests.report.problems import random_split


def matches_of(scores, hits, labels, boxes) -> Matches:
    """All in one image; ``boxes`` by class."""
    hits = np.array(hits, bool)[None]
    return Matches(
        np.zeros(len(scores), np.int64),
        np.array(labels, int),
        np.array(scores, float),
        hits,
        np.zeros_like(hits),
        np.array([boxes]),
    )


def test_f1_of_the_curves_by_hand():
    data, found = random_split(2)
    matches = match(data.records, found, 4)
    own = curves(matches)
    place = 99
    chosen = matches.score >= GRID[place]
    counted = chosen & ~matches.ignored[0] & (matches.label == 1)
    hits, boxes = (matches.hit[0] & counted).sum(), matches.boxes[:, 1].sum()
    assert own.precision[1, place] == pytest.approx(hits / counted.sum())
    assert own.recall[1, place] == pytest.approx(hits / boxes)
    assert own.f1[1, place] == pytest.approx(2 * hits / (counted.sum() + boxes))
    assert np.isnan(own.recall[3]).all()  # no box


def test_the_threshold_lies_in_the_gap_between_right_and_false():
    scores = np.concatenate((np.linspace(0.7, 0.9, 200), np.linspace(0.1, 0.4, 200)))
    hits = np.arange(400) < 200
    found = best_thresholds(matches_of(scores, hits, np.zeros(400, int), [200]))
    assert found.values == pytest.approx([0.55], abs=0.03)
    assert found.f1 == pytest.approx([1.0])


def test_a_class_with_few_boxes_borrows_from_all():
    scores = np.concatenate((np.linspace(0.7, 0.9, 200), np.linspace(0.1, 0.4, 200), [0.99, 0.2]))
    hits = np.concatenate((np.arange(400) < 200, [False, True]))
    labels = np.concatenate((np.zeros(400, int), [1, 1]))
    many, few, none = best_thresholds(matches_of(scores, hits, labels, [200, 1, 0])).values
    assert 0.4 < few < 0.7  # by itself it would say 0.2, from one box
    assert none == pytest.approx(many, abs=0.02)


def test_no_threshold_where_nothing_is_found():
    assert best_thresholds(matches_of([0.5], [False], [0], [3])) == Thresholds()
    assert best_thresholds(matches_of([], [], [], [0])) == Thresholds()


def test_a_class_that_is_hardly_found_has_a_low_f1():
    scores = np.linspace(0.03, 0.01, 2000)
    hits = np.arange(2000) % 200 == 0
    found = best_thresholds(matches_of(scores, hits, np.zeros(2000, int), [100]))
    assert 0 < found.f1[0] < LEAST_F1
    assert found.values[0] < 0.05
    assert found.usable() == [DEFAULT]


def test_calibration_by_hand():
    result = calibrate_bins(matches_of([0.91, 0.93, 0.55, 0.55, 0.01], [1, 0, 1, 1, 0], [0] * 5, [4]))
    assert result.counts.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0, 2]  # the last detection is below what anybody looks at
    assert result.precision[[5, 9]] == pytest.approx([1.0, 0.5])
    assert result.ece == pytest.approx((2 * 0.45 + 2 * 0.42) / 4)
    assert calibrate_bins(matches_of([], [], [], [1])).ece is None


def test_confusion_by_hand():
    data, _ = random_split(0, images=1)
    boxes = np.array([[0, 0, 50, 50], [100, 0, 150, 50], [200, 0, 250, 50], [0, 100, 300, 400]], np.float32)
    record = type(data.records[0])(
        data.records[0].path, 1, 480, 480, boxes, np.array([0, 1, 2, 0]), np.array([False, False, False, True]), np.ones(4)
    )
    found = np.array(
        [[0, 0, 50, 49], [0, 0, 50, 50], [100, 0, 150, 50], [5, 150, 60, 200], [400, 0, 450, 50], [400, 99, 450, 150]],
        np.float32,
    )
    scores, labels = np.array([0.6, 0.9, 0.8, 0.9, 0.7, 0.2], np.float32), np.array([0, 1, 2, 0, 1, 1])
    (only,) = pair([record], {0: (found, scores, labels)}, np.array([0.5, 0.5, 0.5]))
    matrix = confusion_matrix([only], 3)
    # the right class has the box, though the other one is surer; the crowd swallows one; one is not confident enough
    assert matrix.tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 2, 0, 0]]
    assert cost(only) == pytest.approx(1 + 0.9 + 0.8 + 0.7)
    (nothing,) = pair([record], {}, np.array([0.5, 0.5, 0.5]))
    assert cost(nothing) == 3


def test_every_box_and_detection_is_counted_once():
    data, found = random_split(3, crowds=0.0)
    matrix = confusion_matrix(list(pair(data.records, found, np.zeros(4))), 4)
    assert matrix[:4].sum() == sum(len(record.boxes) for record in data.records)
    assert matrix[:, :4].sum() == sum(len(scores) for _, scores, _ in found.values())


def test_the_difference_of_a_detector_with_itself_is_nothing():
    data, found = random_split(1)
    matches = match(data.records, found, 4)
    result = paired_difference(matches, matches, resamples=100)
    assert (result.value, result.low, result.high, result.positive) == (0.0, 0.0, 0.0, 0.0)


def test_a_better_detector_is_found_to_be_better():
    data, found = random_split(1)
    worse = {place: (boxes + 12, scores, labels) for place, (boxes, scores, labels) in found.items()}
    good, bad = match(data.records, found, 4), match(data.records, worse, 4)
    result = paired_difference(bad, good, resamples=200, seed=3)
    assert result.value == pytest.approx((average_precision(good) - average_precision(bad))[0])
    assert result.low < result.value < result.high
    assert result.positive > 0.9
    assert paired_difference(bad, good, resamples=200, seed=3) == result
    other = paired_difference(good, bad, resamples=200, seed=3)
    assert (other.low, other.high) == pytest.approx((-result.high, -result.low))


def test_an_interval_needs_as_many_images_as_a_sign_test():
    assert [images for images in range(12) if enough_images(images, 0.95)][:1] == [6]
    assert [images for images in range(12) if enough_images(images, 0.99)][:1] == [8]
    assert not enough_images(0, 0.5)
    assert enough_images(100_000, 0.999)


def test_names_that_are_not_utf8_are_drawn_escaped():
    assert "m\\xfcnze" in recall_figure(np.ones((101, 2)), ["m\udcfcnze", "cat"])
