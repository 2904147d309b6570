from __future__ import annotations

import math

import pytest

from nextdetr.engine.best import Best, luck


def after(*scores):
    best = Best()
    for number, score in enumerate(scores, start=1):
        best.update(number, {"AP": score})
    return best


@pytest.mark.parametrize(
    ("scores", "epoch"),
    [
        ((0.1, 0.3, 0.2), 2),
        ((0.3, 0.3), 1),  # a draw changes nothing
        ((None,), 1),
        ((None, None, None), 3),
        ((0.0, 0.0), 2),
        ((None, 0.0), 2),
        ((0.0, None), 2),
        ((math.nan, 0.0, 0.1), 3),
        ((0.1, None, 0.0, math.nan), 1),
    ],
)
def test_undefined_and_zero_never_stay_the_best(scores, epoch):
    best = after(*scores)
    assert best.epoch == epoch
    assert best.metrics["AP"] is scores[epoch - 1]


def test_patience_counts_from_the_first_score_above_zero():
    assert after(0.0, None, 0.0, 0.0).stale == 0
    best = after(0.0, 0.0, 0.2, 0.1, None)
    assert (best.epoch, best.stale) == (3, 2)
    assert best.out_of_patience(2)
    assert not best.out_of_patience(3)
    assert not best.out_of_patience(None)
    assert after(0.2, 0.1, 0.3).stale == 0


def test_it_says_whether_a_validation_was_the_best():
    best = Best()
    assert [best.update(n, {"AP": score}) for n, score in enumerate((0.0, 0.0, 0.2, 0.1, 0.2, 0.3))] == [
        True, True, True, False, False, True,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("last", "images", "epoch"),
    [(0.46, 9, 3), (0.46, 50, 2), (0.43, 9, 2), (0.0, 9, 2), (None, 9, 2), (math.nan, 9, 2)],
)
def test_the_last_validation_counts_unless_it_is_clearly_worse(last, images, epoch):
    best = after(0.2, 0.48)
    best.update(3, {"AP": last})
    line = best.settle(3, {"AP": last}, None, images)
    assert (line is not None) is (epoch == 3)
    assert line is None or "9 images of val cannot tell an AP of 0.4600 from the run's highest, 0.4800" in line
    assert best.epoch == epoch


def test_the_best_need_not_be_settled_and_a_longer_run_starts_from_it():
    best = after(0.2, 0.48)
    assert best.settle(2, {"AP": 0.48}, None, 9) is None
    best.update(3, {"AP": 0.46})
    best.settle(3, {"AP": 0.46}, None, 9)
    assert (best.score, best.stale) == (0.46, 0)
    assert best.update(4, {"AP": 0.47})


def test_few_images_of_val_make_lucky_scores():
    assert luck(9) == pytest.approx(0.1 / 3)
    assert luck(49) == pytest.approx(0.1 / 7)
    assert [luck(50), luck(5000), luck(0)] == [0.0, 0.0, 0.0]
