"""Conformal risk control: the threshold is the highest one within the bound, and the bound holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nextdetr.data.records import ImageRecord
from nextdetr.report.guarantee import Objects, control_risk, found_objects
from nextdetr.report.matching import match


def draw(generator, images: int, *, digits: int = 6) -> Objects:
    """Images that differ in how hard they are; three in four objects or more are found with some score."""
    count = generator.integers(1, 8, images)
    image = np.repeat(np.arange(images), count)
    score = np.round(generator.beta(*(1 + 4 * generator.random((2, images)))[:, image]), digits)
    found = generator.random(len(image)) < 0.97
    return Objects(count, image[found], score[found], np.arange(images))


def brute_force(objects: Objects, alpha: float) -> float | None:
    """The definition, threshold by threshold."""
    n, best = len(objects.count), None
    for threshold in np.unique(objects.score):
        losses = []
        for image in range(n):
            hits = ((objects.image == image) & (objects.score >= threshold)).sum()
            losses.append(1 - hits / objects.count[image])
        if n / (n + 1) * np.mean(losses) + 1 / (n + 1) <= alpha + 1e-9:
            best = float(threshold)
    return best


@pytest.mark.parametrize("digits", [6, 1])  # the latter with many equal scores
@pytest.mark.parametrize("seed", range(5))
def test_threshold_is_the_highest_within_the_bound(seed, digits):
    objects = draw(np.random.default_rng(seed), 40, digits=digits)
    for recall in (0.5, 0.8, 0.9):
        found = control_risk(objects, recall)
        assert found.threshold == (pytest.approx(brute_force(objects, 1 - recall), abs=2e-6))
        assert found.bound <= 1 - recall + 1e-9
        assert found.missed == pytest.approx(objects.missed(found.threshold).mean())
        assert found.bound == pytest.approx((40 * found.missed + 1) / 41)


def test_expected_loss_of_a_new_image_is_bounded():
    alpha, losses = 0.2, []
    for seed in range(2000):
        objects = draw(np.random.default_rng(seed), 26)
        found = control_risk(objects.take(np.arange(25)), 1 - alpha)
        assert found.threshold is not None
        losses.append(objects.take(np.array([25])).missed(found.threshold).mean())
    error = np.std(losses, ddof=1) / np.sqrt(len(losses))
    assert np.mean(losses) <= alpha + 2 * error
    assert np.mean(losses) >= alpha - 2 / 26 - 2 * error  # the paper's other side (theorem 2): not by missing too little


def test_out_of_reach():
    objects = Objects(np.array([2, 4]), np.array([0, 1, 1, 1]), np.array([0.9, 0.8, 0.7, 0.6]), np.arange(2))
    found = control_risk(objects, 0.9)
    assert found.threshold is None
    assert found.missed == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert found.highest_recall == pytest.approx(1 - (2 * 0.375 + 1) / 3)
    assert control_risk(objects, found.highest_recall).threshold == pytest.approx(0.6, abs=2e-6)
    nothing = control_risk(Objects(np.array([1]), np.zeros(0, int), np.zeros(0), np.zeros(1, int)), 0.5)
    assert (nothing.threshold, nothing.missed, nothing.highest_recall) == (None, 1.0, 0.0)


def test_rounding_never_loses_an_object():
    scores = np.random.default_rng(0).random(200).astype(np.float32)
    objects = Objects(np.ones(200, int), np.arange(200), scores.astype(np.float64), np.arange(200))
    found = control_risk(objects, 0.8)
    kept = scores >= np.float32(found.threshold)  # as predict compares
    assert (~kept).mean() == pytest.approx(found.missed)


def test_what_counts_as_found():
    def record(boxes, labels, crowd=None):
        boxes = np.array(boxes, np.float32).reshape(-1, 4)
        labels = np.array(labels, np.int64)
        crowd = np.zeros(len(boxes), bool) if crowd is None else np.array(crowd)
        return ImageRecord(Path("x.png"), 1, 100, 100, boxes, labels, crowd, np.ones(len(boxes), np.float32))

    a, b, c = [0, 0, 20, 20], [40, 40, 60, 60], [70, 0, 90, 20]
    records = [record([a, b], [0, 1]), record([], []), record([a, b, c], [0, 0, 0], [False, False, True])]
    found = {
        0: (np.array([a, a, b], np.float32), np.array([0.9, 0.8, 0.7], np.float32), np.array([0, 0, 0])),  # b: wrong class
        1: (np.array([a], np.float32), np.array([0.9], np.float32), np.array([0])),
        2: (np.array([b, c, a], np.float32), np.array([0.6, 0.5, 0.4], np.float32), np.array([0, 0, 0])),
    }
    objects = found_objects(match(records, found, 2, ious=np.array([0.5])))
    assert objects.positions.tolist() == [0, 2]  # without objects nothing can be missed
    assert objects.count.tolist() == [2, 2]  # a crowd is no object
    assert objects.missed(0.0).tolist() == [0.5, 0.0]
    assert objects.missed(0.5).tolist() == [0.5, 0.5]
    assert objects.missed(0.95).tolist() == [1.0, 1.0]
