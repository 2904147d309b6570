from __future__ import annotations

import math

import pytest

from nextdetr.engine import budget as budget_module
from nextdetr.engine.budget import DEFAULT_EPOCHS, Budget


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(budget_module.time, "perf_counter", lambda: now[0])
    return now


def test_epochs(clock):
    budget = Budget(10, None, places=5, started=clock[0])
    assert budget.progress(0, 0) == 0
    assert budget.progress(4, 2) == pytest.approx(0.44)
    assert not budget.over(9, 4)
    assert budget.over(10, 0)
    clock[0] += 44
    assert budget.remaining_seconds(4, 2) == pytest.approx(56)


def test_a_limit_ends_a_run_of_epochs_that_is_too_slow_for_it(clock):
    budget = Budget.of(10, None, 5, started=clock[0], limit=2.0)
    clock[0] += 30
    assert budget.progress(5, 0) == 0.5  # a quarter of the time is over
    assert budget.progress(1, 0) == 0.25
    budget.keep_back(60)
    assert budget.progress(1, 0) == 0.5
    clock[0] += 30
    assert budget.over(1, 0)


def test_the_minutes_have_an_end_and_half_of_them_can_be_kept_back(clock):
    budget = Budget.of(None, 2.0, 5, spent=30.0, started=clock[0])
    assert budget.ends == clock[0] + 90
    assert budget.can_keep_back(60)
    assert not budget.can_keep_back(61)
    endless = Budget.of(10, None, 5, started=clock[0])
    assert endless.ends == math.inf
    assert endless.can_keep_back(1e9)


def test_minutes_count_earlier_sessions_and_keep_a_reserve(clock):
    budget = Budget(None, 2.0, places=5, spent=30.0, reserve=20.0, started=clock[0])
    assert budget.progress(0, 0) == pytest.approx(0.3)
    clock[0] += 69.9
    assert not budget.over(3, 0)
    clock[0] += 0.2
    assert budget.over(3, 0)
    assert budget.remaining_seconds(3, 0) == pytest.approx(19.9)


def test_minutes_estimate_the_epochs(clock):
    budget = Budget(None, 1.0, places=4, started=clock[0])
    clock[0] += 15
    assert budget.estimated_epochs(2, 2) == 10


def test_default_length():
    assert Budget.of(None, None, 3).epochs == DEFAULT_EPOCHS
    assert Budget.of(None, 5.0, 3).epochs is None


def test_progress_never_jumps(clock):
    """A reserve that becomes known, or a resume, changes the pace and not the value; the run still ends in time."""
    budget = Budget(None, 2.0, places=5, started=clock[0])
    clock[0] += 30
    assert budget.progress(0, 0) == pytest.approx(0.25)
    budget.keep_back(30)
    assert budget.progress(0, 0) == pytest.approx(0.25)
    clock[0] += 30
    assert budget.progress(0, 0) == pytest.approx(0.25 + 0.75 * 30 / 60)
    again = Budget(None, 2.0, places=5, spent=budget.seconds, started=clock[0])
    clock[0] += 10  # what a resume takes to look at the data
    again.go_on(budget.passed + 0.375, budget.reserve)
    assert again.progress(0, 0) == pytest.approx(0.625)
    clock[0] += 19.9
    assert not again.over(0, 0)
    clock[0] += 0.2
    assert again.over(0, 0)


def test_validation_may_not_take_all_of_the_time(clock):
    budget = Budget(None, 1.0, places=5, started=clock[0])
    budget.keep_back(500)
    assert budget.reserve == 30
    clock[0] += 29
    assert not budget.over(0, 0)


def test_the_time_before_the_loop_counts(clock):
    began = clock[0]
    clock[0] += 15
    assert Budget.of(None, 1.0, 5, started=began).progress(0, 0) == pytest.approx(0.25)


def test_the_length_in_words():
    assert Budget(20, None, places=5).length == "20 epochs"
    assert Budget(None, 1.5, places=5).length == "1.5 minutes"
    assert [Budget(1, None, places=5).length, Budget(None, 1.0, places=5).length] == ["1 epoch", "1 minute"]
