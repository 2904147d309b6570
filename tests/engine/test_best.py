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
    ("last", "slack", "epoch"),
    [(0.46, 0.03, 3), (0.46, 0.0, 2), (0.43, 0.03, 2), (0.5, 0.03, 3), (0.0, 0.9, 2), (None, 0.9, 2)],
)
def test_the_last_validation_counts_unless_it_is_clearly_worse(last, slack, epoch):
    best = after(0.2, 0.48)
    assert best.update(3, {"AP": last}, slack=slack) is (epoch == 3)
    assert best.epoch == epoch
    assert best.highest == max(0.48, last or 0.0)


def test_a_run_that_continues_has_to_beat_its_highest_score():
    best = after(0.2, 0.48)
    best.update(3, {"AP": 0.47}, slack=0.03)
    assert not best.update(4, {"AP": 0.475})
    assert (best.epoch, best.stale) == (3, 2)
    assert best.update(5, {"AP": 0.49})
    assert best.stale == 0
    earlier = Best(2, {"AP": 0.48})  # from a state without ``highest``
    assert not earlier.update(3, {"AP": 0.4})
    assert earlier.highest == 0.48


def test_few_images_of_val_make_lucky_scores():
    assert luck(9) == pytest.approx(0.1 / 3)
    assert luck(49) == pytest.approx(0.1 / 7)
    assert [luck(50), luck(5000), luck(0)] == [0.0, 0.0, 0.0]
