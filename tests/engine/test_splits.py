"""Training without val: a part of train is held out, and that is reported and stored."""

from __future__ import annotations

import json

import pytest

from nextdetr.config import TrainConfig, ValConfig
from nextdetr.config_file import read_config_file
from nextdetr.data.split import SetAside, load_split_off
from nextdetr.engine.setup import resolve_config
from nextdetr.engine.splits import load_splits
from nextdetr.engine.train import train
from nextdetr.engine.validate import score_detector
from nextdetr.errors import ConfigError, DataError
from nextdetr.weights.checkpoint import open_model, save_opened
from tests.helpers import squares, tiny_model


def without_val(folder):
    """The squares that are there for training."""
    source = squares(folder)
    (source / "annotations" / "instances_val.json").unlink()
    return source


def test_run_without_val_sets_a_part_aside_and_keeps_it(tmp_path, capsys):
    data = without_val(tmp_path / "squares")
    config = TrainConfig(
        data=str(data), model=str(tiny_model(tmp_path)), epochs=1, image_size=64, batch_size=2, workers=0, seed=5,
        output=tmp_path / "run",
    )  # fmt: skip
    train(config)
    told = capsys.readouterr().err
    assert "--split-off 0.2: there is no val: this fraction of train chooses the best weights" in told
    assert "set aside from train (--split-off 0.2 --seed 5)" in told
    assert read_config_file(tmp_path / "run" / "config.yaml")["split_off"] == 0.2
    val = load_split_off(data, "val", 0.2, 5)
    listed = (tmp_path / "run" / "val.txt").read_text().splitlines()
    assert [name.rpartition("/")[2] for name in listed] == [record.path.name for record in val.records]
    resumed = load_splits(resolve_config(TrainConfig(resume=tmp_path / "run", epochs=2)), lambda _: None)
    assert [record.path for record in resumed.val.records] == [record.path for record in val.records]
    opened = open_model(tmp_path / "run" / "best.safetensors")
    result = score_detector(opened, ValConfig(data=str(data), split_off=0.2, seed=5), quiet=True)
    assert result.images == len(listed)
    capsys.readouterr()
    again = score_detector(opened, ValConfig(data=str(data)))  # the file knows what was set aside
    assert f"; no val, so the {len(listed)} of 6 images that training set aside" in capsys.readouterr().err
    assert (again.images, again.metrics, again.per_class) == (result.images, result.metrics, result.per_class)
    with pytest.raises(DataError, match="there is no split test; available: train"):
        score_detector(opened, ValConfig(data=str(data), split="test"), quiet=True)
    content = json.loads((data / "annotations" / "instances_train.json").read_text())
    content["images"].pop()
    (data / "annotations" / "instances_train.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"has changed since, so the images that training set aside .* val\.txt lists them"):
        score_detector(opened, ValConfig(data=str(data)), quiet=True)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"share": 2, "seed": 1, "min_confidence": null, "images": "a"}'])
def test_what_a_file_says_of_its_images_may_be_anything(text):
    assert SetAside.from_metadata({"set_aside": text}) is None


def test_the_same_labels_count_in_the_choice_again(tmp_path, monkeypatch):
    """With other labels than in training, other images might be taken for those set aside."""
    extra = SetAside(0.2, 5, 0.5, "").to_metadata()
    model = open_model(tiny_model(tmp_path))
    opened = open_model(save_opened(tmp_path / "a.safetensors", model, classes=["square", "bar"], extra=extra))
    asked = {}

    def load(*arguments, **options):
        asked.update(options)
        raise DataError("read")

    monkeypatch.setattr("nextdetr.engine.validate.load_split_off", load)
    with pytest.raises(DataError, match="read"):
        score_detector(opened, ValConfig(data=str(tmp_path), split_off=0.2, seed=5), quiet=True)
    assert asked["min_confidence"] == 0.5


def test_share_is_refused_where_there_is_a_val(tmp_path):
    config = TrainConfig(data=str(squares(tmp_path)), split_off=0.3)
    with pytest.raises(ConfigError, match="it has a val of its own; leave --split-off out"):
        load_splits(config, lambda _: None)


@pytest.mark.parametrize("crowd", [False, True])
def test_a_val_without_boxes_is_said_before_training(tmp_path, crowd):
    data = squares(tmp_path / "squares")
    file = data / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    content["annotations"] = [row | {"iscrowd": 1} for row in content["annotations"]] if crowd else []
    told: list[str] = []
    load_splits(TrainConfig(data=str(data)), told.append)
    assert not any("nothing can be scored" in line for line in told)
    file.write_text(json.dumps(content))
    load_splits(TrainConfig(data=str(data)), told.append)
    assert any(line.startswith("val has no box to find, so nothing can be scored") for line in told)


def test_a_list_that_no_run_has_written_is_not_replaced(tmp_path):
    data, output = without_val(tmp_path / "squares"), tmp_path / "run"
    output.mkdir()
    (output / "val.txt").write_text("mine.png\n")
    config = TrainConfig(
        data=str(data), model=str(tiny_model(tmp_path)), epochs=1, image_size=64, batch_size=2, workers=0, output=output,
        report=False,
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"val\.txt: a run that sets images aside as val would replace this file"):
        train(config, quiet=True)
    assert (output / "val.txt").read_text() == "mine.png\n"
    assert not (output / "config.yaml").exists()
    (output / "val.txt").unlink()
    train(config, quiet=True)
    assert len((output / "val.txt").read_text().splitlines()) == 1
