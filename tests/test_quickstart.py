"""The quickstart on a small scale; `make quickstart` itself is the whole of it."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from nextdetr.cli.main import run
from nextdetr.data import coins


@pytest.mark.slow
def test_quickstart_trains_scores_and_draws(tmp_path, monkeypatch, capsys):
    make = coins.make_coins
    monkeypatch.setattr(coins, "make_coins", lambda path, **options: make(path, train=16, val=4, test=4, **options))
    assert run(["quickstart", "--minutes", "0.3", "--output", str(tmp_path / "q"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {
        "command", "output", "epochs", "seconds", "images_per_second", "best", "checkpoint", "metrics", "photograph",
    }  # fmt: skip
    assert set(result["photograph"]) == {"found", "coins", "detections", "picture"}
    assert result["photograph"]["coins"] == 24
    assert 0 <= result["photograph"]["found"] <= 24
    assert Image.open(result["photograph"]["picture"]).size[0] >= 384
    assert len(result["metrics"]) == 12
