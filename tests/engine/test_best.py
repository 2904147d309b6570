from __future__ import annotations

import math

import pytest

from nextdetr.engine.best import Best


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
