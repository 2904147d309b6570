from __future__ import annotations

import csv
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors import safe_open
from safetensors.torch import load_file

import nextdetr
from nextdetr.config import PretrainConfig, TrainConfig, build_config
from nextdetr.config_file import read_config_file
from nextdetr.engine import pretrain_head
from nextdetr.engine.fine_tune import plan_fine_tuning
from nextdetr.engine.pretrain import Pretrainer
from nextdetr.engine.pretrain_head import HeadTrainer, _settings
from nextdetr.engine.pretrain_setup import backbone_of, detector_of
from nextdetr.engine.recipe import choose_recipe
from nextdetr.engine.statistics import DataStats, Machine
from nextdetr.engine.train import train
from nextdetr.errors import ConfigError, Interrupted, ModelFileError
from nextdetr.weights.inspect import inspect_file
from nextdetr.weights.layouts.table import Identity
from nextdetr.weights.start import resolve_model, start_model
from tests.helpers import squares, stop_after, tiny_model


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for number in range(4):
        image = Image.new("RGB", (90, 80), (150, 150, 140))
        draw = ImageDraw.Draw(image)
        for _ in range(4):
            x, y, r = generator.integers(15, 70), generator.integers(15, 65), generator.integers(5, 12)
            draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(generator.integers(0, 256, 3).tolist()))
        image.save(folder / f"{number}.png")
    return folder


@pytest.fixture
def settings(images, tmp_path):
    return {
        "images": str(images), "model": str(tiny_model(tmp_path)), "detector": True, "epochs": 1, "head_epochs": 3,
        "image_size": 64, "batch_size": 2, "head_batch_size": 2, "workers": 0, "decoder_width": 32,
        "output": tmp_path / "run",
    }  # fmt: skip


def test_pictures_of_fewer_bits_fill_the_whole_range_in_both_parts(settings, tmp_path, monkeypatch):
    folder = tmp_path / "grey"
    folder.mkdir()
    for number in range(4):
        Image.fromarray(np.full((80, 90), 4095 if number else 0, np.uint16)).save(folder / f"{number}.png")
    brightest = {Pretrainer: [], HeadTrainer: []}
    for kind, found in brightest.items():
        step = kind.step

        def look(self, batch, progress, last, *, step=step, found=found):
            found.append(float(batch.images.max()))
            return step(self, batch, progress, last)

        monkeypatch.setattr(kind, "step", look)
    result = nextdetr.pretrain(**settings | {"images": str(folder), "head_epochs": 1}, bits=12, quiet=True)
    assert [max(found) for found in brightest.values()] == pytest.approx([1.0, 1.0], abs=0.01)
    with safe_open(result.weights, "pt") as file:
        assert file.metadata()["bits"] == "12"


@pytest.fixture(scope="module")
def pretrained(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    return nextdetr.pretrain(
        images, model=str(tiny_model(folder)), detector=True, epochs=1, head_epochs=1, image_size=64, workers=0,
        decoder_width=32, output=folder / "run", quiet=True,
    )  # fmt: skip


def losses(folder):
    with (folder / "head" / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def test_one_file_holds_backbone_and_head_and_says_what_it_is(pretrained):
    assert set(pretrained.to_json()) == {
        "command", "output", "epochs", "seconds", "images_per_second", "loss", "weights", "head",
    }  # fmt: skip
    assert set(pretrained.head) == {"epochs", "seconds", "loss"}
    with safe_open(pretrained.weights, "pt") as file:
        metadata = file.metadata()
    assert metadata["kind"] == "detector-pretrained"
    assert json.loads(metadata["classes"]) == ["object"]
    assert (metadata["weights_licence"], metadata["image_size"]) == ("none", "64")
    assert resolve_model(pretrained.output) == Path(pretrained.weights)
    found = inspect_file(pretrained.weights)
    assert any("pre-trained without labels" in note for note in found["notes"])
    detections = nextdetr.Detector(pretrained.weights).predict(np.zeros((64, 64, 3), dtype=np.uint8), confidence=0.0)
    assert len(detections[0]) > 0


def test_training_takes_all_of_it_and_starts_each_class_as_an_object(pretrained, tmp_path):
    classes = ["a", "b", "c"]
    torch.manual_seed(0)
    started = start_model(tiny_model(tmp_path), classes=classes, weights=pretrained.weights)
    report, state, stored = started.reports[0], started.model.state_dict(), load_file(pretrained.weights)
    of_classes = set(started.model.class_parameters())
    assert not report.missing
    assert not report.unexpected
    assert set(report.reshaped) == of_classes
    assert of_classes
    for name, tensor in stored.items():
        assert torch.equal(state[name], tensor.expand_as(state[name]) if name in of_classes else tensor), name
    assert any("each of the model's 3 classes starts as any object" in note for note in report.notes)
    result = train(
        TrainConfig(
            data=str(squares(tmp_path / "data", images=2)), model=str(tiny_model(tmp_path)), weights=pretrained.weights,
            epochs=1, image_size=64, batch_size=2, workers=0, output=tmp_path / "train",
        ),
        quiet=True,
    )  # fmt: skip
    with safe_open(result.checkpoint, "pt") as file:
        assert "kind" not in file.metadata()
    assert "backbone_rate_factor: 1.0" in (tmp_path / "train" / "config.yaml").read_text()
    backbone = start_model(tiny_model(tmp_path), classes=classes, backbone_weights=pretrained.weights)
    name = "rows.0.stages.0.0.dwconv.weight"
    assert torch.equal(backbone.model.state_dict()[name], stored[name])


def test_backbone_and_head_learn_together_and_show_what_on(settings):
    result = nextdetr.pretrain(**settings, quiet=True)
    backbone, whole = load_file(settings["output"] / "backbone.safetensors"), load_file(result.weights)
    assert not torch.equal(backbone["stages.3.0.pwconv1.weight"], whole["rows.0.stages.3.0.pwconv1.weight"])
    state = torch.load(settings["output"] / "head" / "last.ckpt", weights_only=True)["optimizer"]["state"]
    assert all(bool(entry["exp_avg"].any()) for entry in state.values())
    values = losses(settings["output"])
    assert [row["step"] for row in values] == ["2", "4", "6"]
    assert result.head["loss"] == pytest.approx(float(values[-1]["loss"]), abs=1e-3)
    assert Image.open(settings["output"] / "head" / "pictures" / "training_batch.jpg").width >= 64


def test_a_detector_that_shows_its_backbone_other_pixels_is_told_of(settings, tmp_path, capsys):
    told = "note: the backbone is pre-trained on pixels normalised as ImageNet's"
    nextdetr.pretrain(**settings | {"head_epochs": 1})
    assert told in " ".join(capsys.readouterr().err.split())
    model = tmp_path / "same.yaml"
    model.write_text(tiny_model(tmp_path).read_text() + "normalize: imagenet\n")
    nextdetr.pretrain(**settings | {"head_epochs": 1, "model": str(model), "output": tmp_path / "same"})
    assert told not in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("task", "steps"), [(Pretrainer, 1), (HeadTrainer, 1), (HeadTrainer, 4)])
def test_a_resumed_run_equals_the_uninterrupted_one(settings, tmp_path, monkeypatch, task, steps):
    whole = tmp_path / "whole"
    nextdetr.pretrain(**settings | {"output": whole}, quiet=True)
    stop_after(monkeypatch, task, steps)
    with pytest.raises(Interrupted, match=f"pretrain --resume {settings['output']}$"):
        nextdetr.pretrain(**settings, quiet=True)
    monkeypatch.undo()
    taken, step = [], task.step
    monkeypatch.setattr(task, "step", lambda self, *arguments: taken.append(1) or step(self, *arguments))
    result = nextdetr.pretrain(resume=settings["output"], quiet=True)
    assert len(taken) == (2 if task is Pretrainer else 6) - steps
    assert (result.epochs, result.head["epochs"]) == (1, 3)
    assert losses(settings["output"]) == losses(whole)
    first, second = (load_file(folder / "detector.safetensors") for folder in (whole, settings["output"]))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_a_run_whose_head_has_begun_goes_on_with_the_head_alone(settings, monkeypatch):
    nextdetr.pretrain(**settings, quiet=True)
    backbone = (settings["output"] / "backbone.safetensors").read_bytes()
    monkeypatch.setattr(Pretrainer, "step", lambda *_: pytest.fail("the head would not have it"))
    result = nextdetr.pretrain(resume=settings["output"], head_epochs=4, quiet=True)
    assert (result.epochs, result.head["epochs"], len(losses(settings["output"]))) == (1, 4, 4)
    assert result.loss > 0
    assert (settings["output"] / "backbone.safetensors").read_bytes() == backbone
    stored = read_config_file(settings["output"] / "config.yaml")
    assert (stored["epochs"], stored["head_epochs"], stored["resume"]) == (1, 4, None)
    with pytest.raises(ConfigError, match="--epochs is the length of the backbone's training, from which the head"):
        nextdetr.pretrain(resume=settings["output"], epochs=5, quiet=True)
    assert nextdetr.pretrain(resume=settings["output"], minutes=0.001, quiet=True).head["epochs"] == 4


def test_minutes_are_shared_out(settings, monkeypatch):
    config = PretrainConfig(images=("x",), model="nextdetr-atto", detector=True, minutes=10, head_share=0.7)
    assert config.backbone_minutes == pytest.approx(3)
    assert config.head_minutes == pytest.approx(7)
    assert PretrainConfig(images=("x",), minutes=10).backbone_minutes == 10
    del settings["epochs"], settings["head_epochs"]
    monkeypatch.setattr(time, "perf_counter", time.process_time)  # other processes take none of it
    result = nextdetr.pretrain(**settings, minutes=0.1, head_share=0.5, quiet=True)
    assert 2.5 <= result.head["seconds"] <= 6
    assert 5.5 <= result.seconds <= 10


def test_a_length_of_the_head_alone_leaves_the_backbone_none(settings, monkeypatch):
    """It replaces the minutes of a run that is still at its backbone."""
    del settings["epochs"], settings["head_epochs"]
    with monkeypatch.context() as patch:
        stop_after(patch, Pretrainer, 1)
        with pytest.raises(Interrupted):
            nextdetr.pretrain(**settings, minutes=1, quiet=True)
    with pytest.raises(ConfigError, match="give --epochs too, or leave --head-epochs out"):
        nextdetr.pretrain(resume=settings["output"], head_epochs=1, quiet=True)
    result = nextdetr.pretrain(resume=settings["output"], epochs=1, head_epochs=1, quiet=True)
    assert (result.epochs, result.head["epochs"]) == (1, 1)


@pytest.mark.parametrize(
    ("model", "detector", "backbone"),
    [
        ("convnextv2-atto", "nextdetr-atto", "atto"),
        ("nextdetr-zepto", "nextdetr-zepto", "zepto"),
        ("rtdetr-l-convnextv2-femto", "rtdetr-l-convnextv2-femto", "femto"),
    ],
)
def test_a_detector_is_named_by_itself_or_by_its_backbone(model, detector, backbone):
    config = PretrainConfig(images=("x",), model=model, detector=True)
    assert (detector_of(config), backbone_of(config)) == (detector, backbone)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"model": "rtdetr-r18vd"}, ConfigError, "not a ConvNeXt V2"),
        ({"model": "nextdetr-ato"}, ModelFileError, "nextdetr-atto"),
        ({"detector": False, "head_epochs": None, "head_batch_size": None}, ConfigError, "a detector with --detector"),
        ({"detector": False}, ConfigError, "--head-epochs is for the head: give --detector too"),
        ({"minutes": 1.0, "epochs": None}, ConfigError, "--head-epochs and --minutes"),
        ({"grn": False}, ConfigError, "--no-grn"),
        ({"head_image_size": 100}, ConfigError, "multiple of 32"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(settings, changes, error, words):
    with pytest.raises(error, match=words):
        nextdetr.pretrain(**settings | changes, quiet=True)
    assert not settings["output"].exists()


def test_without_scikit_image_it_says_what_to_install(settings, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(ConfigError, match=r"pip install .*\[quickstart\]"):
        nextdetr.pretrain(**settings, quiet=True)
    assert not settings["output"].exists()


def test_the_recipe_does_not_take_it_for_a_trained_detector():
    config = build_config(TrainConfig, {"data": "d", "weights": "w.safetensors"})
    data = DataStats(20, 200, ("a", "b"), (100, 100), 15, 0.1, 640, ((640, 480),) * 20)
    machine = Machine("cpu", 2, 2, 8 << 30)
    models = ["nextdetr-zepto", "nextdetr-atto"]
    random = choose_recipe(build_config(TrainConfig, {"data": "d"}), data, machine, models=models).config
    identity = Identity("nextdetr-detector", "nextdetr-zepto", ["object"], without_labels=True)
    tuning = plan_fine_tuning(data.classes, identity, config.model)
    prepared = choose_recipe(config, data, machine, models=models, tuning=tuning).config
    assert prepared.model == "nextdetr-zepto"
    assert (prepared.optimizer, prepared.learning_rate, prepared.backbone_rate_factor) == ("muon", 1.6e-3, 1.0)
    assert (prepared.image_size, prepared.epochs) == (random.image_size, random.epochs)
    trained = choose_recipe(config, data, machine, models=models).config
    assert trained.learning_rate < prepared.learning_rate


def test_a_head_that_has_begun_keeps_its_epochs(settings, monkeypatch):
    """On another number of processes, where another number would be chosen now."""
    del settings["head_epochs"]
    monkeypatch.setattr(pretrain_head, "EPOCHS", 1)
    monkeypatch.setattr(pretrain_head, "STEPS", 6)
    with monkeypatch.context() as patch:
        stop_after(patch, HeadTrainer, 3)
        with pytest.raises(Interrupted):
            nextdetr.pretrain(**settings, quiet=True)
    monkeypatch.setattr(pretrain_head, "STEPS", 12)
    assert nextdetr.pretrain(resume=settings["output"], quiet=True).head["epochs"] == 3


@pytest.mark.parametrize(
    ("epochs", "head_epochs", "expected"), [(1, None, 1), (800, None, 500), (1, 7, 7), (None, None, 500)]
)
def test_a_short_pre_training_has_a_short_head(epochs, head_epochs, expected):
    config = PretrainConfig(
        images=("images",), model="nextdetr-atto", detector=True, epochs=epochs, head_epochs=head_epochs
    )
    assert _settings(config, 48, 1, "nextdetr-atto").epochs == expected  # 3,000 steps of 8 images are 500 epochs
