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
from nextdetr.engine.train import Trainer, train
from nextdetr.errors import ConfigError, Interrupted
from tests.helpers import squares, stop_after, tiny_model


@pytest.mark.slow
def test_quickstart_trains_scores_and_draws(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quickstart, "EPOCHS", 3)
    make = coins.make_coins
    monkeypatch.setattr(coins, "make_coins", lambda path, **options: make(path, train=16, val=4, test=4, **options))
    assert run(["quickstart", "--minutes", "0.3", "--output", str(tmp_path / "q"), "--json"]) == 0
    told = capsys.readouterr()
    result = json.loads(told.out)
    assert set(result) == {
        "command", "output", "epochs", "seconds", "images_per_second", "best", "checkpoint", "metrics", "photograph",
    }  # fmt: skip
    assert result["epochs"] == 3  # of four steps: long before the minutes are over
    assert set(result["photograph"]) == {"found", "coins", "detections", "picture"}
    assert result["photograph"]["coins"] == 24
    assert 0 <= result["photograph"]["found"] <= 24
    assert Image.open(result["photograph"]["picture"]).size[0] >= 384
    assert len(result["metrics"]) == 12
    lines = told.err.splitlines()
    starts = ["Step 1 of 3", "Step 2 of 3: train nextdetr-zepto", "Data set read as coco:", "epoch 1/3 ", "Step 3 of 3"]
    places = [[place for place, line in enumerate(lines) if line.startswith(start)] for start in starts]
    assert [len(found) for found in places] == [1] * 5
    assert places == sorted(places)


def result_of(folder, **changed):
    photograph = {"found": 22, "coins": 24, "detections": 26, "picture": "coins.png"}
    metrics = {"AP": 0.6231, "AP50": 0.8294}
    checkpoint = str(folder / "best.safetensors")
    given = {"epochs": 20, "checkpoint": checkpoint, "metrics": metrics, "photograph": photograph} | changed
    return quickstart.QuickstartResult(output=str(folder), seconds=1.0, images_per_second=2.0, best={}, **given)


def test_what_it_prints_says_what_the_numbers_mean(tmp_path, monkeypatch, capsys):
    (tmp_path / "best.safetensors").touch()
    (tmp_path / "report.html").touch()
    monkeypatch.setattr(quickstart, "quickstart", lambda config: result_of(tmp_path))
    assert run(["quickstart"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Test images: AP50 0.8294, AP 0.6231 (1 is perfect)",
        "  AP50 counts a box as right if it overlaps a coin by half or more (IoU 0.5); AP averages over 0.5 to 0.95.",
        "Photograph: 22 of 24 coins found, with 26 boxes of confidence 0.5 or more, 4 of them wrong",
        "Picture with these boxes: coins.png",
        f"Report, with scores, errors and the worst images: {tmp_path / 'report.html'}",
        f"Next: nextdetr predict {tmp_path / 'best.safetensors'} YOUR_IMAGE.jpg",
    ]


def test_it_says_when_the_limit_ended_it_and_when_no_box_is_wrong(tmp_path, monkeypatch, capsys):
    photograph = {"found": 3, "coins": 24, "detections": 3, "picture": "coins.png"}
    result = result_of(tmp_path, epochs=2, metrics={"AP": None, "AP50": None}, photograph=photograph)
    monkeypatch.setattr(quickstart, "quickstart", lambda config: result)
    assert run(["quickstart", "--minutes", "1"]) == 0
    out = capsys.readouterr().out
    assert "--minutes 1 ended the training after 2 of 20 epochs" in out
    assert "AP50 undefined" in out
    assert "none of them wrong" in out
    assert "Report" not in out


def test_minutes_only_limit_the_epochs(tmp_path, monkeypatch, capsys):
    def limited(settings, *, quiet, limit):
        raise ConfigError(f"{settings.epochs} epochs, {settings.minutes} minutes, limit {limit:g}")

    monkeypatch.setattr("nextdetr.engine.train.train", limited)
    make = coins.make_coins
    monkeypatch.setattr(coins, "make_coins", lambda path, **options: make(path, train=1, val=1, test=1, **options))
    assert run(["quickstart", "--output", str(tmp_path / "q")]) == 2
    assert "20 epochs, None minutes, limit 15" in capsys.readouterr().err


def small_coins(monkeypatch):
    make = coins.make_coins
    monkeypatch.setattr(coins, "make_coins", lambda path, **options: make(path, train=8, val=2, test=2, **options))


def test_it_says_how_long_it_trains_at_most(tmp_path, monkeypatch, capsys):
    def stop(settings, *, quiet, limit):
        raise Interrupted("stopped in epoch 3 after 161 steps; resume with: nextdetr train --resume q")

    monkeypatch.setattr("nextdetr.engine.train.train", stop)
    small_coins(monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert run(["quickstart", "--minutes", "2"]) == 130
    told = capsys.readouterr().err
    assert "for 20 epochs (passes over train images), at most 2 minutes" in told
    assert "stopped while training; continue with: nextdetr quickstart --minutes 2.0\n" in told
    assert "--resume" not in told


@pytest.mark.slow
def test_one_that_was_interrupted_continues_in_its_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quickstart, "EPOCHS", 2)
    small_coins(monkeypatch)
    monkeypatch.chdir(tmp_path)
    look = quickstart.look_at_photograph
    with monkeypatch.context() as patch:
        stop_after(patch, Trainer, 1)
        assert run(["quickstart"]) == 130
    assert "stopped while training; continue with: nextdetr quickstart\n" in capsys.readouterr().err

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(quickstart, "look_at_photograph", interrupt)
    assert run(["quickstart"]) == 130
    assert "epoch 1/2" in capsys.readouterr().err
    monkeypatch.setattr(quickstart, "look_at_photograph", look)
    assert run(["quickstart", "--seed", "1"]) == 0  # another quickstart, with other images
    (tmp_path / "runs" / "quickstart-2").rename(tmp_path / "other")
    capsys.readouterr()
    assert run(["quickstart"]) == 0
    told = capsys.readouterr().err
    assert "images to train on are there already" in told
    assert "epoch 1/2" not in told  # it was trained before
    names = [path.name for path in (tmp_path / "runs").iterdir()]
    assert names == ["quickstart"]
    assert (tmp_path / "runs" / "quickstart" / "coins.png").is_file()
    assert run(["quickstart", "--minutes", "0.05"]) == 0  # that one is finished
    assert (tmp_path / "runs" / "quickstart-2" / "coins.png").is_file()


@pytest.mark.parametrize("name", ["last.ckpt", "best.safetensors"])
def test_the_folder_of_another_run_is_left_alone(name, tmp_path, capsys):
    (tmp_path / name).touch()
    assert run(["quickstart", "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"nextdetr: {tmp_path}: holds a run already; choose another --output.\n"
    assert [path.name for path in tmp_path.iterdir()] == [name]


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
