"""What must be unchanged when a run is resumed, and what happens if it is not."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

import nextdetr
from nextdetr.config import TrainConfig
from nextdetr.config_file import read_config_file
from nextdetr.data.sources import load_data
from nextdetr.engine.pretrain import Pretrainer
from nextdetr.engine.resume import Contract, describe_images
from nextdetr.engine.train import Trainer, train
from nextdetr.errors import ConfigError, DataError, Interrupted, WeightsError
from nextdetr.weights.checkpoint import read_detector_metadata
from tests.helpers import interrupt_training, squares, stop_after, tiny_model


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    squares(tmp_path / "squares")
    tiny_model(tmp_path)
    return {
        "data": "squares", "model": "tiny.yaml", "epochs": 2, "image_size": 64, "batch_size": 2, "workers": 0,
        "output": "run",
    }  # fmt: skip


def set_classes(folder, categories):
    """Write other categories; the boxes keep their category's id, which is 1 for a square and 2 for a bar."""
    for split in ("train", "val"):
        path = folder / "annotations" / f"instances_{split}.json"
        content = json.loads(path.read_text())
        content["categories"] = [{"id": number, "name": name} for name, number in categories.items()]
        path.write_text(json.dumps(content))


def told(capsys):
    return " ".join(capsys.readouterr().err.split())


def test_a_run_goes_on_from_elsewhere_with_data_that_have_moved(settings, tmp_path, monkeypatch, capsys):
    interrupt_training(settings, 2)
    stored = read_config_file("run/config.yaml")
    assert (stored["data"], stored["model"]) == (str(tmp_path / "squares"), str(tmp_path / "tiny.yaml"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "squares").rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"squares: the data set of the run no longer exists; .* --data"):
        train(TrainConfig(resume="../run"), quiet=True)
    capsys.readouterr()
    assert train(TrainConfig(resume="../run", data="../moved", epochs=3)).epochs == 3
    assert "not exactly as it would have" not in told(capsys)
    stored = read_config_file("../run/config.yaml")
    assert (stored["epochs"], stored["resume"]) == (3, None)
    assert (tmp_path / "moved").samefile(stored["data"])
    assert (tmp_path / "run").samefile(stored["output"])


def test_the_runs_classes_stay_in_their_order(settings, tmp_path, monkeypatch, capsys):
    interrupt_training(settings, 2)
    set_classes(tmp_path / "squares", {"bar": 2, "square": 1})
    assert load_data("squares", "train").classes == ["bar", "square"]
    seen = []
    original = Trainer.__init__
    monkeypatch.setattr(Trainer, "__init__", lambda self, run, *a: (seen.append(run), original(self, run, *a))[1])
    train(TrainConfig(resume="run"))
    assert seen[0].train_data.classes == seen[0].val_data.classes == ["square", "bar"]
    assert seen[0].train_data.records[0].labels.tolist() == [0, 1]
    assert "not exactly as it would have" not in told(capsys)
    assert json.loads(read_detector_metadata("run/best.safetensors")["classes"]) == ["square", "bar"]


@pytest.mark.parametrize(
    ("categories", "words"),
    [
        ({"square": 1}, "without the class bar"),
        ({"square": 1, "bar": 2, "ring": 3}, "with the new class ring"),
        ({"square": 1, "pole": 2}, "without the class bar; with the new class pole"),
    ],
)
def test_other_classes_are_refused(settings, tmp_path, monkeypatch, categories, words):
    interrupt_training(settings, 1)
    set_classes(tmp_path / "squares", categories)
    with pytest.raises(DataError, match=f"squares: its classes are no longer those of the run run .{words}"):
        train(TrainConfig(resume="run"), quiet=True)


def test_other_images_boxes_and_batches_are_told(tmp_path):
    squares(tmp_path)
    data = load_data(tmp_path, "train")
    before = Contract.of(data, together=4)
    assert before.differences(Contract.of(data, together=4)) == []
    assert before.differences(Contract.of(data, together=8)) == [
        "A step now has 8 images, not 4: it continues, but not exactly as it would have."
    ]
    boxes = [replace(data.records[0], boxes=data.records[0].boxes + 1), *data.records[1:]]
    (line,) = before.differences(Contract.of(replace(data, records=boxes), together=4))
    assert line.startswith("The boxes of train are not those")
    (line,) = before.differences(Contract.of(replace(data, records=data.records[::-1]), together=4))
    assert line.startswith("The images of train are not those")


def test_images_are_known_by_their_content(tmp_path):
    squares(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    squares(tmp_path / "a")
    first, second = (load_data(tmp_path / name, "train").records for name in ("a", "b"))
    assert describe_images(first) == describe_images(second)
    pixels = Image.open(second[2].path)
    pixels.putpixel((90, 90), (1, 2, 3))
    pixels.save(second[2].path)
    assert describe_images(first) != describe_images(second)
    second[2].path.unlink()
    assert describe_images(first) != describe_images(second)


def test_pre_training_goes_on_from_elsewhere_too(settings, tmp_path, monkeypatch, capsys):
    options = {"images": "squares/images/train", "image_size": 64, "batch_size": 2, "decoder_width": 32, "workers": 0}
    with monkeypatch.context() as patch:
        stop_after(patch, Pretrainer, 2)
        with pytest.raises(Interrupted):
            nextdetr.pretrain(**options, epochs=2, output="run", quiet=True)
    (tmp_path / "squares").rename(tmp_path / "moved")
    capsys.readouterr()
    assert nextdetr.pretrain("moved/images/train", resume="run", epochs=1).epochs == 1
    assert "not exactly as it would have" not in told(capsys)
    stored = read_config_file("run/config.yaml")
    assert (stored["epochs"], stored["images"]) == (1, [str(tmp_path / "moved" / "images" / "train")])


def test_a_state_that_does_not_fit_is_refused_in_a_sentence(settings, monkeypatch):
    interrupt_training(settings, 1)
    state = torch.load("run/last.ckpt", weights_only=True)
    del state["model"][next(iter(state["model"]))]
    torch.save(state, "run/last.ckpt")
    with pytest.raises(WeightsError, match=r"last\.ckpt: does not fit the model of the run"):
        train(TrainConfig(resume="run"), quiet=True)
    torch.save({"state_version": 1, "cursor": {"epoch": 1, "batch": 0}}, "run/last.ckpt")
    with pytest.raises(WeightsError, match="written by an earlier NextDETR"):
        train(TrainConfig(resume="run"), quiet=True)


def test_a_damaged_contract_or_config_is_refused(settings, tmp_path, monkeypatch):
    interrupt_training(settings, 2)
    state = torch.load("run/last.ckpt", weights_only=True)
    for contract, cause in (
        ({"classes": 5}, "classes: "),
        (None, "contract is not a mapping"),
        ({}, "classes: field required"),
    ):
        torch.save({**state, "contract": contract}, "run/last.ckpt")
        with pytest.raises(WeightsError, match=f"not a whole training state .{cause}"):
            train(TrainConfig(resume="run"), quiet=True)
    torch.save(state, "run/last.ckpt")
    for text, missing in (("", "model"), ("model: tiny.yaml\n", "data")):
        (tmp_path / "run" / "config.yaml").write_text(text)
        with pytest.raises(ConfigError, match=f"config.yaml: the setting {missing} is missing"):
            train(TrainConfig(resume="run"), quiet=True)


def test_a_damaged_state_of_pretraining_is_refused(tmp_path, monkeypatch):
    squares(tmp_path / "squares")
    output = tmp_path / "run"
    options = {"model": "convnextv2-zepto", "image_size": 64, "batch_size": 4, "workers": 0, "quiet": True}
    nextdetr.pretrain(str(tmp_path / "squares" / "images" / "train"), epochs=1, output=output, **options)
    state = torch.load(output / "last.ckpt", weights_only=True)
    changes = {"pretraining": {}, "started_from": [1]}
    for name, value in [*changes.items(), ("pretraining", {"loss": "low", "drawn_at": 0.0})]:
        torch.save({**state, name: value}, output / "last.ckpt")
        with pytest.raises(WeightsError, match=r"last\.ckpt: "):
            nextdetr.pretrain(resume=output, epochs=2, workers=0, quiet=True)
