"""The quickstart on a small scale; `make quickstart` itself is the whole of it."""

from __future__ import annotations

import json
import time

import pytest
from PIL import Image

from nextdetr import quickstart
from nextdetr.cli.main import run
from nextdetr.config import TrainConfig
from nextdetr.data import coins
from nextdetr.engine.train import train
from nextdetr.errors import ConfigError
from tests.helpers import squares, tiny_model


@pytest.mark.slow
def test_quickstart_trains_scores_and_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quickstart, "EPOCHS", 3)
    make = coins.make_coins
    monkeypatch.setattr(coins, "make_coins", lambda path, **options: make(path, train=16, val=4, test=4, **options))
    assert run(["quickstart", "--minutes", "0.3", "--output", str(tmp_path / "q"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {
        "command", "output", "epochs", "seconds", "images_per_second", "best", "checkpoint", "metrics", "photograph",
    }  # fmt: skip
    assert result["epochs"] == 3  # of four steps: long before the minutes are over
    assert set(result["photograph"]) == {"found", "coins", "detections", "picture"}
    assert result["photograph"]["coins"] == 24
    assert 0 <= result["photograph"]["found"] <= 24
    assert Image.open(result["photograph"]["picture"]).size[0] >= 384
    assert len(result["metrics"]) == 12


def test_minutes_only_limit_the_epochs(tmp_path, monkeypatch, capsys):
    def limited(settings, *, quiet, limit):
        raise ConfigError(f"{settings.epochs} epochs, {settings.minutes} minutes, limit {limit:g}")

    monkeypatch.setattr("nextdetr.engine.train.train", limited)
    make = coins.make_coins
    monkeypatch.setattr(coins, "make_coins", lambda path, **options: make(path, train=1, val=1, test=1, **options))
    assert run(["quickstart", "--output", str(tmp_path / "q")]) == 2
    assert "20 epochs, None minutes, limit 15" in capsys.readouterr().err


def test_a_limit_ends_a_training_of_epochs(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "perf_counter", time.process_time)  # other processes take none of it
    settings = TrainConfig(
        data=str(squares(tmp_path / "data", images=2)), model=str(tiny_model(tmp_path)), epochs=10_000, image_size=64,
        batch_size=2, workers=0, output=tmp_path / "run",
    )  # fmt: skip
    result = train(settings, quiet=True, limit=0.05)
    assert 1 <= result.epochs < 1000
    assert 2 < result.seconds < 30
    rates = [float(row.split(",")[3]) for row in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1:]]
    assert rates[-1] < 0.3 * max(rates)  # the schedule ended with it
