"""``--image-size`` is checked against the model by every command, before data are read or files are written."""

from __future__ import annotations

import json

import pytest

from nextdetr.cli.main import run
from tests.helpers import tiny_model

COMMANDS = {
    "train": ["train", "--data", "nowhere", "--model", "MODEL"],
    "val": ["val", "MODEL", "--data", "nowhere"],
    "predict": ["predict", "MODEL", "nowhere"],
    "embed": ["embed", "MODEL", "nowhere"],
    "export": ["export", "MODEL", "--format", "pt2"],
    "benchmark": ["benchmark", "MODEL"],
    "info": ["info", "MODEL"],
    "pretrain": ["pretrain", "nowhere"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("size", "nearest"), [(100, "96 and 128"), (80, "64 and 96")])
def test_a_size_that_does_not_fit_is_one_sentence(command, size, nearest, tmp_path, monkeypatch, capsys):
    model = str(tiny_model(tmp_path))
    monkeypatch.chdir(tmp_path)
    arguments = [model if word == "MODEL" else word for word in COMMANDS[command]]
    assert run([*arguments, "--image-size", str(size), "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "ConfigError"
    assert error["message"].startswith("--image-size must be a multiple of 32")
    assert f"the nearest are {nearest}" in error["message"]
    assert [path.name for path in tmp_path.rglob("*")] == ["tiny.yaml"]  # nothing was written, and no folder made
