from __future__ import annotations

import csv
import json
import sys

import pytest
import torch
from lightning_fabric import Fabric
from safetensors import safe_open

from nextdetr.config import TrainConfig
from nextdetr.engine import train as train_module
from nextdetr.engine.setup import prepare_model
from nextdetr.engine.train import Trainer, train
from nextdetr.errors import ConfigError, DataError, Interrupted, TrainingError
from nextdetr.models.graph import build_model
from nextdetr.weights.convert import save_backbone
from tests.helpers import squares, stop_after, tiny_model


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return squares(tmp_path_factory.mktemp("squares"))


@pytest.fixture
def settings(data, tmp_path):
    return {
        "data": str(data), "model": str(tiny_model(tmp_path)), "epochs": 2, "image_size": 64, "batch_size": 2, "workers": 0,
        "val_every": 1, "output": tmp_path / "run",
    }  # fmt: skip


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def losses(folder):
    return [{k: v for k, v in row.items() if k.startswith("loss") or k in ("epoch", "step")} for row in rows(folder)]


def test_a_run_leaves_all_its_files(settings):
    result = train(TrainConfig(**settings), quiet=True)
    folder = settings["output"]
    for name in (
        "config.yaml", "metrics.csv", "best.safetensors", "last.ckpt", "last.safetensors", "pictures/training_batch.jpg",
        "pictures/curves.png",
    ):  # fmt: skip
        assert (folder / name).is_file(), name
    assert list(folder.glob("events.out.tfevents.*"))
    assert [path.name for path in folder.rglob(".*") if path.is_file()] == [".lock"]  # no temporary file
    assert (result.epochs, result.output, result.checkpoint) == (2, str(folder), str(folder / "best.safetensors"))
    assert set(result.to_json()) == {"command", "output", "epochs", "seconds", "images_per_second", "best", "checkpoint"}
    assert len(result.best["metrics"]) == 12
    assert [row["epoch"] for row in rows(folder)] == ["1", "2"]
    assert list(rows(folder)[0])[:5] == ["epoch", "step", "seconds", "learning_rate", "loss"]


def test_the_detector_file_says_what_it_is(settings):
    train(TrainConfig(**settings), quiet=True)
    with safe_open(settings["output"] / "best.safetensors", "pt") as file:
        metadata = file.metadata()
        names = list(file.keys())
    assert json.loads(metadata["classes"]) == ["square", "bar"]
    assert metadata["image_size"] == "64"
    assert "convnextv2_atto" in metadata["model"]
    assert {"format_version", "metrics", "weights_licence", "source_weights", "nextdetr_version"} <= set(metadata)
    assert any(name.startswith("rows.0.stages.") for name in names)
    torch.load(settings["output"] / "last.ckpt", weights_only=True)


@pytest.mark.parametrize(("steps", "optimizer"), [(2, "adamw"), (3, "adamw"), (4, "adamw"), (4, "muon")])
def test_a_resumed_run_equals_the_uninterrupted_one(settings, tmp_path, monkeypatch, steps, optimizer):
    """Stopped inside and between epochs (three batches each); the losses of every epoch are equal to the last bit."""
    settings, whole = settings | {"optimizer": optimizer}, tmp_path / "whole"
    train(TrainConfig(**settings | {"output": whole}), quiet=True)

    stop_after(monkeypatch, Trainer, steps)
    with pytest.raises(Interrupted, match="--resume"):
        train(TrainConfig(**settings), quiet=True)
    monkeypatch.undo()
    train(TrainConfig(resume=settings["output"]), quiet=True)
    assert losses(settings["output"]) == losses(whole)
    first, second = (torch.load(folder / "last.ckpt", weights_only=True) for folder in (whole, settings["output"]))
    for part in ("model", "ema"):
        torch.testing.assert_close(first[part], second[part], rtol=0, atol=0)


def test_a_run_goes_on_when_what_it_started_from_is_gone(settings, tmp_path, monkeypatch):
    backbone = build_model(settings["model"]).backbone
    weights = save_backbone(tmp_path / "b.safetensors", backbone.state_dict(), weights_licence="MIT", source_weights="x")
    stop_after(monkeypatch, Trainer, 1)
    with pytest.raises(Interrupted, match="--resume"):
        train(TrainConfig(**settings | {"backbone_weights": weights}), quiet=True)
    monkeypatch.undo()
    weights.unlink()
    train(TrainConfig(resume=settings["output"]), quiet=True)
    with safe_open(settings["output"] / "best.safetensors", "pt") as file:
        assert file.metadata()["weights_licence"] == "MIT"
        assert file.metadata()["source_weights"] == str(weights)


def test_a_non_finite_loss_names_step_images_and_gradients(settings, monkeypatch):
    def poison(self, output, targets):
        terms = original(self, output, targets)
        terms["loss_l1"] = terms["loss_l1"] * float("nan")
        return terms

    original = train_module.Criterion.__call__
    monkeypatch.setattr(train_module.Criterion, "__call__", poison)
    with pytest.raises(
        TrainingError, match=r"epoch 1, step 1 \(terms loss_l1; images .*\.png.*largest gradients rows\."
    ) as error:
        train(TrainConfig(**settings), quiet=True)
    assert error.value.exit_code == 1


def test_accumulated_steps(settings):
    train(TrainConfig(**settings | {"accumulate": 2, "epochs": 1}), quiet=True)
    assert rows(settings["output"])[-1]["step"] == "2"  # three batches: one pair, one alone


def test_a_single_batch_at_the_end_of_an_epoch_is_a_step_of_its_own(settings, monkeypatch):
    """Its gradient is its own, not half of it, as if there were a second batch."""
    backward, step, learnt, losses = Fabric.backward, Trainer.step, [], []

    def noted(self, tensor, *arguments, **options):
        learnt.append(float(tensor.detach()))
        return backward(self, tensor, *arguments, **options)

    def taken(self, *arguments):
        values = step(self, *arguments)
        losses.append(values["loss"])
        return values

    monkeypatch.setattr(Fabric, "backward", noted)
    monkeypatch.setattr(Trainer, "step", taken)
    for accumulate, shares in ((2, [2, 2, 1]), (8, [3, 3, 3])):
        output = settings["output"].with_name(f"run-{accumulate}")
        train(TrainConfig(**settings | {"accumulate": accumulate, "epochs": 1, "output": output}), quiet=True)
        assert [whole / part for whole, part in zip(losses, learnt, strict=True)] == pytest.approx(shares, rel=1e-4)
        losses.clear()
        learnt.clear()


def test_minutes_end_the_run_in_time(settings):
    del settings["epochs"]
    result = train(TrainConfig(**settings | {"minutes": 0.08}), quiet=True)
    assert result.epochs >= 1
    assert result.seconds < 15


def test_a_frozen_backbone_stays_as_it_was_and_then_learns(settings, monkeypatch):
    seen = []
    original = Trainer.score

    def watch(self, number):
        state = self.run_.model.state_dict()
        assert self.run_.model.rows[0].training == (self.cursor.epoch == 2)
        seen.append({name: state[name].clone() for name in ("rows.0.stages.0.0.pwconv1.weight", "rows.1.conv.weight")})
        return original(self, number)

    monkeypatch.setattr(Trainer, "score", watch)
    train(TrainConfig(**settings | {"epochs": 3, "freeze_backbone_epochs": 2}), quiet=True)
    (backbone, head), (backbone_2, head_2), (backbone_3, _) = (epoch.values() for epoch in seen)
    assert torch.equal(backbone, backbone_2)
    assert not torch.equal(head, head_2)
    assert not torch.equal(backbone_2, backbone_3)


@pytest.mark.parametrize(("licence", "factor"), [("none", 1.0), ("CC-BY-NC-4.0", 0.1)])
def test_a_backbone_with_labels_behind_it_learns_slower(settings, tmp_path, licence, factor):
    """What nextdetr pretrain makes has no licence but the user's; converted published weights keep theirs."""
    backbone = build_model(settings["model"]).backbone
    path = save_backbone(tmp_path / "b.safetensors", backbone.state_dict(), weights_licence=licence, source_weights="x")
    config = TrainConfig(**settings | {"backbone_weights": path})
    _, filled, started_from = prepare_model(config, ["square"], lambda text: None)
    assert filled.backbone_rate_factor == factor
    assert started_from.licence == licence
    assert prepare_model(TrainConfig(**settings), ["square"], lambda text: None)[1].backbone_rate_factor == 1.0


def test_early_stopping(settings, monkeypatch):
    original = train_module.validate

    def always_the_same(*args, **kwargs):
        result = original(*args, **kwargs)
        result.metrics["AP"] = 0.5
        return result

    monkeypatch.setattr(train_module, "validate", always_the_same)
    result = train(TrainConfig(**settings | {"epochs": 9, "patience": 2}), quiet=True)
    assert result.epochs == 3
    assert result.best["epoch"] == 1


def test_training_goes_on_from_a_checkpoint_with_other_classes(settings, tmp_path):
    train(TrainConfig(**settings | {"epochs": 1}), quiet=True)
    again = settings | {"model": str(settings["output"] / "best.safetensors"), "output": tmp_path / "again", "epochs": 1}
    result = train(TrainConfig(**again), quiet=True)
    assert result.epochs == 1


def test_bf16(settings):
    train(TrainConfig(**settings | {"precision": "bf16-mixed", "epochs": 1}), quiet=True)
    assert float(rows(settings["output"])[0]["loss"]) > 0


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": None}, ConfigError, "--data"),
        ({"data": "nowhere"}, DataError, "nowhere"),
        ({"model": "nextdetr-attto"}, Exception, "nextdetr-atto"),
        ({"weights": "no.safetensors"}, Exception, "no such file"),
    ],
)
def test_mistakes_are_found_before_training(settings, changes, error, message):
    with pytest.raises(error, match=message):
        train(TrainConfig(**settings | changes), quiet=True)
    assert sys.platform == "win32" or not settings["output"].exists()


def test_a_run_is_not_overwritten_and_resume_refuses_other_settings(settings):
    train(TrainConfig(**settings | {"epochs": 1}), quiet=True)
    with pytest.raises(ConfigError, match="holds a run already"):
        train(TrainConfig(**settings), quiet=True)
    with pytest.raises(ConfigError, match="leave out --batch-size"):
        train(TrainConfig(resume=settings["output"], batch_size=4), quiet=True)
    with pytest.raises(ConfigError, match=r"no config\.yaml"):
        train(TrainConfig(resume=settings["output"] / "pictures"), quiet=True)


def test_weights_and_settings_of_others_are_not_replaced(settings):
    folder = settings["output"]
    folder.mkdir()
    mine = "# tried on Monday\nepochs: 3\n"
    for text in (mine, "a: [", ""):
        (folder / "config.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"config\.yaml: a run would replace this file"):
            train(TrainConfig(**settings), quiet=True)
        assert (folder / "config.yaml").read_text() == text
    assert sys.platform == "win32" or [path.name for path in folder.iterdir()] == ["config.yaml"]
    (folder / "config.yaml").unlink()
    train(TrainConfig(**settings | {"epochs": 1}), quiet=True)
    (folder / "last.ckpt").unlink()  # to save space
    kept = (folder / "best.safetensors").read_bytes()
    with pytest.raises(ConfigError, match=r"run: holds best\.safetensors of an earlier run"):
        train(TrainConfig(**settings), quiet=True)
    assert (folder / "best.safetensors").read_bytes() == kept
    for path in folder.glob("*.safetensors"):
        path.unlink()
    assert train(TrainConfig(**settings), quiet=True).epochs == 2  # as after a run killed at its beginning
