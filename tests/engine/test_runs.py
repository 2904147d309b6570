"""``nextdetr runs``: what the files of runs say, from Python and the command line."""

from __future__ import annotations

import json

import pytest
import torch

import nextdetr
from nextdetr.cli.main import run
from nextdetr.errors import DataError
from nextdetr.weights.tensorfile import write_tensors

TABLE = "epoch,step,seconds,learning_rate,loss,AP,AP50\n"


@pytest.fixture
def folder(tmp_path):
    rows = {
        "low": "1,5,10.5,0.1,3.5,0.1,0.3\n2,10,21,0.1,3.1,,\n3,15,75,0.1,2.9,0.05,0.2\n",
        "deep/high": "1,5,10,0.1,3.5,0.25,0.5\n2,10,4000,0.1,3.1,0.5,0.75\n",
        "pretrained": "",
        "bad": "1,2\n",
    }
    for number, (name, text) in enumerate(rows.items()):
        path = tmp_path / "runs" / name
        path.mkdir(parents=True)
        head = "epoch,loss\n1,0.7\n" if name == "pretrained" else TABLE + text
        (path / "metrics.csv").write_text(head)
        config = f"model: nextdetr-zepto\ndata: /somewhere/cells\nimage_size: 64\nseed: {number}\nlearning_rate: 0.0008\n"
        (path / "config.yaml").write_text(config + "since: 2026-01-01\n")
    place = {"run_id": "abc", "look": "mlflow ui"}
    (tmp_path / "runs" / "low" / "logs.json").write_text(json.dumps({"mlflow": place, "tensorboard": {"look": "tb"}}))
    (tmp_path / "runs" / "pretrained" / "logs.json").write_text("[")
    (tmp_path / "runs" / "predict").mkdir()
    (tmp_path / "runs" / "low" / "pictures").mkdir()
    return tmp_path / "runs"


def test_the_best_first_with_what_their_files_say(folder):
    found = nextdetr.runs(folder).runs
    assert [row.run for row in found] == [str(folder / name) for name in ("deep/high", "low", "bad", "pretrained")]
    high, low, bad, pretrained = found
    assert (high.AP, high.AP50, high.best_epoch, high.epochs, high.seconds, high.loss) == (0.5, 0.75, 2, 2, 4000, 3.1)
    assert (low.AP, low.best_epoch, low.epochs) == (0.1, 1, 3)
    assert (high.settings["seed"], high.settings["since"]) == (1, "2026-01-01")
    assert (pretrained.AP, pretrained.epochs, pretrained.loss) == (None, 1, 0.7)
    assert low.logs["mlflow"] == {"run_id": "abc", "look": "mlflow ui"}
    assert high.logs == {}
    assert "logs.json: cannot be read" in pretrained.problem
    assert "line 2 does not have as many values" in bad.problem


def keep(path, metrics):
    """Write the file of a run's best weights, as far as it matters here."""
    write_tensors(path / "best.safetensors", {"x": torch.zeros(1)}, {"metrics": json.dumps(metrics)})


def test_the_score_is_that_of_the_weights_that_the_run_kept(folder):
    """With few images of val these are the last ones, if they are about as good as those with the highest AP."""
    keep(folder / "low", {"AP": 0.05000001, "AP50": 0.2})
    keep(folder / "deep" / "high", {"AP": 0.31, "AP50": 0.6})  # of an epoch that the table lacks
    high, low, *_ = nextdetr.runs(folder).runs
    assert (low.AP, low.AP50, low.best_epoch, low.epochs) == (0.05, 0.2, 3, 3)
    assert (high.AP, high.AP50, high.best_epoch) == (0.31, 0.6, None)
    for metrics in ({}, [], {"AP": None}, {"AP": float("nan")}):  # it does not say, as one that import-run wrote
        keep(folder / "low", metrics)
        assert nextdetr.runs(folder / "low").runs[0].best_epoch == 1
    (folder / "low" / "best.safetensors").write_bytes(b"\xff" * 20)
    assert nextdetr.runs(folder / "low").runs[0].AP == 0.1


def test_without_any_ap_the_weights_are_the_last_ones(folder):
    """An AP of 0 never stays the best of a run."""
    rows = "1,5,10.5,0.1,3.5,0,0\n2,10,21,0.1,3.1,,\n3,15,75,0.1,2.9,0,0\n4,20,90,0.1,2.8,,\n"
    (folder / "low" / "metrics.csv").write_text(TABLE + rows)
    assert nextdetr.runs(folder / "low").runs[0].best_epoch == 3
    keep(folder / "low", {"AP": 0.0, "AP50": 0.0})
    assert nextdetr.runs(folder / "low").runs[0].best_epoch == 3


def test_the_command(folder, capsys):
    assert run(["runs", str(folder), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["command"], len(result["runs"])) == ("runs", 4)
    assert run(["runs", str(folder)]) == 0
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert lines[1].split() == [
        "deep/high", "0.5000", "0.7500", "2", "2", "1:06:40", "nextdetr-zepto", "cells", "64", "-", "0.0008", "1",
    ]  # fmt: skip
    assert lines[-2:] == ["", "low: mlflow abc  mlflow ui"]
    assert "bad" in output.err
    assert run(["runs", str(folder / "low")]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("low  0.1000")
    assert run(["runs", str(folder / "predict")]) == 0
    assert "no run in it" in capsys.readouterr().out
    assert run(["runs", str(folder / "nothing")]) == 2
    with pytest.raises(DataError, match="no such folder"):
        nextdetr.runs(folder / "nothing")
