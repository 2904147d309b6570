"""Time of the parts of a step: inner parts count once, warm-up steps do not count, and nothing happens when it is off."""

from __future__ import annotations

import pytest

from nextdetr.config import TrainConfig
from nextdetr.engine import profile as profile_module
from nextdetr.engine.profile import PARTS, REPORT_AFTER, WARM_UP, StepProfile
from nextdetr.engine.train import train
from tests.helpers import squares, tiny_model


@pytest.fixture
def clock(monkeypatch):
    now = [50.0]
    monkeypatch.setattr(profile_module.time, "perf_counter", lambda: now[0])
    return now


def test_inner_parts_count_once_and_the_rest_is_what_is_left(clock):
    profile = StepProfile(True)

    def pass_time(seconds, value=None):
        clock[0] += seconds
        return value

    matcher = profile.wrap(pass_time, "matcher")
    source = (pass_time(0.25, number) for number in range(WARM_UP + REPORT_AFTER))
    tables = []
    for number in profile.batches(source):
        with profile.part("forward"):
            pass_time(9.0 if number < WARM_UP else 1.0)
        with profile.part("losses"):
            pass_time(0.5)
            assert matcher(2.0, "pairs") == "pairs"
            pass_time(0.125)
        pass_time(0.375)
        tables.append(profile.step())
    result = profile.result()
    assert result["steps"] == REPORT_AFTER
    assert result["step"] == pytest.approx(4.25)
    wanted = {"data": 0.25, "forward": 1.0, "losses": 0.625, "matcher": 2.0, "rest": 0.375}
    assert result["parts"] == pytest.approx(dict.fromkeys(PARTS, 0.0) | wanted)
    assert [table is not None for table in tables] == [False] * (len(tables) - 1) + [True]
    assert "matcher      2000.0 ms   47.1%" in tables[-1]


def test_an_error_leaves_the_parts_in_order(clock):
    profile = StepProfile(True)

    def fail():
        with profile.part("forward"):
            clock[0] += 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with profile.part("ema"):
        clock[0] += 2
    assert profile._seconds["forward"] == 1
    assert profile._seconds["ema"] == 2


def test_off_it_hands_everything_through():
    profile = StepProfile(False)
    source = [1, 2]
    assert profile.batches(source) is source
    assert profile.wrap(len, "matcher") is len
    assert profile.part("forward") is profile.part("losses")
    assert profile.step() is None
    assert profile.result() is None


def test_a_run_reports_it(tmp_path):
    data, model = squares(tmp_path / "data"), str(tiny_model(tmp_path))
    settings = {"image_size": 64, "batch_size": 2, "workers": 0, "epochs": 2}
    result = train(TrainConfig(data=str(data), model=model, output=tmp_path / "on", profile=True, **settings), quiet=True)
    profile = result.to_json()["profile"]
    assert profile["steps"] == 6 - WARM_UP
    assert set(profile["parts"]) == {*PARTS, "rest"}
    assert all(profile["parts"][name] > 0 for name in PARTS)
    assert sum(profile["parts"].values()) == pytest.approx(profile["step"], rel=0.01)
    result = train(
        TrainConfig(data=str(data), model=model, output=tmp_path / "off", **settings | {"epochs": 1}), quiet=True
    )
    assert "profile" not in result.to_json()
