"""A split that a data set does not have: every command says what to do, and that works."""

from __future__ import annotations

import pytest

from nextdetr.cli.main import run
from nextdetr.weights.checkpoint import open_model, save_opened
from tests.helpers import squares, tiny_model

COMMANDS = {
    "val": ["val", "MODEL"],
    "report": ["report", "MODEL", "--pictures", "0"],
    "compare": ["compare", "MODEL", "MODEL", "--resamples", "100"],
    "export": ["export", "MODEL", "--format", "pt2"],
    "benchmark": ["benchmark", "MODEL"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("split")
    squares(folder / "data")
    for name in ("instances_val.json", "instances_train.json"):
        (folder / f"no_{name[10:-5]}" / "annotations").mkdir(parents=True)
        (folder / f"no_{name[10:-5]}" / "images").symlink_to(folder / "data" / "images")
    (folder / "no_val" / "annotations" / "instances_train.json").symlink_to(
        folder / "data" / "annotations" / "instances_train.json"
    )
    (folder / "no_train" / "annotations" / "instances_val.json").symlink_to(
        folder / "data" / "annotations" / "instances_val.json"
    )
    save_opened(folder / "model.safetensors", open_model(tiny_model(folder)), classes=["square", "bar"])
    return folder


def told(place, capsys, words, data, *options):
    words = [str(place / "model.safetensors") if word == "MODEL" else word for word in words]
    code = run([*words, "--data", str(place / data), *options])
    return code, " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_way_out_is_named(place, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    code, text = told(place, capsys, COMMANDS[command], "no_val")
    assert code == 2
    assert "no_val: there is no split val; available: train. Name one of these with --split" in text
    assert ("--split-off 0.2" in text) == (command in ("val", "report", "compare"))
    code, text = told(place, capsys, COMMANDS[command], "no_train", "--split", "test")
    assert code == 2
    assert text.endswith("there is no split test; available: val. Name one of these with --split.")


@pytest.mark.parametrize("options", [["--split", "train"], ["--split-off", "0.2"]])
@pytest.mark.parametrize("command", ["val", "compare"])
def test_the_way_leads_out(place, capsys, command, options):
    code, text = told(place, capsys, COMMANDS[command], "no_val", *options)
    assert code == 0, text


def test_also_for_a_calibration_and_for_images_to_learn_from(place, tmp_path, capsys):
    code, text = told(place, capsys, ["calibrate", "MODEL"], "no_val")
    assert code == 2
    assert "there is no split test; available: train." in text
    assert "with --split" in text
    assert run(["pretrain", str(place / "no_train"), "--epochs", "1", "--output", str(tmp_path / "run")]) == 2
    text = " ".join(capsys.readouterr().err.split())
    assert "there is no split train; available: val. To learn from other images, name the folder that they are in." in text
    assert list(tmp_path.iterdir()) == []
