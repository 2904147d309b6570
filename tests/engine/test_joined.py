"""A training on two data sets: its files, and what continues from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nextdetr.cli.main import run
from nextdetr.config import TrainConfig, ValConfig, build_config
from nextdetr.config_file import read_config_file
from nextdetr.engine.setup import default_output
from nextdetr.engine.train import train
from nextdetr.engine.validate import score_detector
from nextdetr.errors import ConfigError, DataError
from nextdetr.weights.checkpoint import open_model
from tests.helpers import squares, tiny_model


def without_val(folder, size, names):
    squares(folder, size=size)
    (folder / "annotations" / "instances_val.json").unlink()
    file = folder / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["categories"] = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    file.write_text(json.dumps(content))
    return folder


def test_two_data_sets_are_trained_on_as_one(tmp_path, capsys):
    first = without_val(tmp_path / "first", 96, ["square", "bar"])
    second = without_val(tmp_path / "second", 80, ["square", "ball"])
    folder = tmp_path / "run"
    words = ["train", "--data", str(first), str(second), "--model", str(tiny_model(tmp_path)), "--image-size", "64"]
    assert run([*words, "--epochs", "1", "--batch-size", "2", "--workers", "0", "--output", str(folder)]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert f"{first} has no ball; {second} has no bar." in told
    assert told.count("Not every class") == 1
    opened = open_model(folder / "best.safetensors")
    assert opened.classes == ["square", "bar", "ball"]
    assert opened.metadata["data"] == "first and second"
    assert read_config_file(folder / "config.yaml")["data"] == [str(first), str(second)]
    listed = [Path(line) for line in (folder / "val.txt").read_text().splitlines()]
    assert all(path.is_file() for path in listed)
    scored = score_detector(opened, ValConfig(data=str(folder / "data.yaml")), quiet=True)
    assert scored.images == len(listed)
    with pytest.raises(DataError, match=r"A run on several data sets has a data\.yaml that lists them"):
        score_detector(opened, ValConfig(data=str(first)), quiet=True)
    assert train(TrainConfig(resume=folder, epochs=2), quiet=True).epochs == 2
    second.rename(tmp_path / "moved")
    with pytest.raises(DataError, match="second: the data set of the run no longer exists"):
        train(TrainConfig(resume=folder, epochs=3), quiet=True)


def test_a_data_yaml_that_no_run_has_written_is_kept(tmp_path):
    sets = (str(squares(tmp_path / "first")), str(squares(tmp_path / "second")))
    mine = tmp_path / "both" / "data.yaml"  # a data set's folder may also be that of a run
    mine.parent.mkdir()
    mine.write_text("format: coco\nroot: ../first\n")
    options = {"model": str(tiny_model(tmp_path)), "image_size": 64, "epochs": 1, "batch_size": 2, "workers": 0}
    with pytest.raises(ConfigError, match=r"data\.yaml: a run on several data sets would replace this file"):
        train(TrainConfig(data=sets, output=mine.parent, **options), quiet=True)
    train(TrainConfig(data=sets[:1], output=mine.parent, **options), quiet=True)
    train(TrainConfig(resume=mine.parent, epochs=2), quiet=True)
    assert mine.read_text() == "format: coco\nroot: ../first\n"


def test_the_data_yaml_of_a_run_follows_its_data(tmp_path):
    sets = (str(squares(tmp_path / "first")), str(squares(tmp_path / "second", size=80)))
    options = {"model": str(tiny_model(tmp_path)), "image_size": 64, "epochs": 1, "batch_size": 2, "workers": 0}
    train(TrainConfig(data=sets, output=tmp_path / "run", **options), quiet=True)
    assert (tmp_path / "run" / "data.yaml").is_file()
    train(TrainConfig(resume=tmp_path / "run", data=sets[:1], epochs=2), quiet=True)
    assert not (tmp_path / "run" / "data.yaml").exists()


def test_data_sets_are_given_in_several_ways(tmp_path, capsys):
    assert build_config(TrainConfig, {"data": [Path("a"), "b"]}).data == ("a", "b")
    assert build_config(TrainConfig, {"data": Path("a")}).data == ("a",)
    assert build_config(TrainConfig, {"data": "a"}).model_dump()["data"] == "a"
    assert build_config(TrainConfig, {}).data is None
    assert default_output(TrainConfig(data=("x/photos", "corrected"))) == Path("runs/nextdetr-atto-photos+corrected")
    first = squares(tmp_path / "first")
    assert run(["train", "--data", str(first), "--data", str(tmp_path / "gone")]) == 2
    assert f"{tmp_path / 'gone'}: there is no such file or folder" in capsys.readouterr().err
