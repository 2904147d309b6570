from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import nextdetr
from nextdetr.config import PretrainConfig, TrainConfig
from nextdetr.data.unlabelled import UnlabelledDataset
from nextdetr.engine.pretrain import Pretrainer, run_pretraining
from nextdetr.engine.pretrain_picture import Reconstructions
from nextdetr.engine.pretrain_setup import build_pretraining_optimizer, default_batch
from nextdetr.engine.train import train
from nextdetr.errors import ConfigError, DataError, Interrupted, TrainingError, WeightsError
from nextdetr.models.convnextv2 import convnextv2
from nextdetr.models.fcmae import FCMAE
from nextdetr.weights.start import start_model
from tests.helpers import squares, stop_after, tiny_model


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for number in range(6):
        coarse = Image.fromarray(generator.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        coarse.resize((80, 70), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def settings(images, tmp_path):
    return {
        "images": str(images), "epochs": 2, "image_size": 64, "batch_size": 2, "workers": 0, "decoder_width": 32,
        "output": tmp_path / "run",
    }  # fmt: skip


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_a_run_leaves_all_its_files(settings):
    result = nextdetr.pretrain(**settings, quiet=True)
    folder = settings["output"]
    for name in ("config.yaml", "last.ckpt", "pictures/curves.png", "pictures/reconstruction_00002.png"):
        assert (folder / name).is_file(), name
    assert list(folder.glob("events.out.tfevents.*"))
    assert set(result.to_json()) == {"command", "output", "epochs", "seconds", "images_per_second", "loss", "weights"}
    assert (result.epochs, result.output) == (2, str(folder))
    with (folder / "metrics.csv").open() as file:
        assert file.readline().strip() == "epoch,step,seconds,learning_rate,loss"
    assert [row["step"] for row in rows(folder)] == ["3", "6"]
    assert abs(result.loss - float(rows(folder)[-1]["loss"])) < 1e-5
    assert Image.open(folder / "pictures" / "reconstruction_00002.png").width == 3 * 64 + 2 * 4
    torch.load(folder / "last.ckpt", weights_only=True)


def test_what_was_learnt_loads_into_a_detector_whole(settings, tmp_path):
    result = nextdetr.pretrain(**settings, quiet=True)
    with safe_open(result.weights, "pt") as file:
        assert file.metadata()["kind"] == "backbone"
        assert file.metadata()["backbone"] == "convnextv2-atto"
        assert file.metadata()["weights_licence"] == "none"
    started = start_model("nextdetr-atto", classes=["a"], backbone_weights=result.weights)
    report = started.reports[0]
    assert not report.missing
    assert not report.unexpected
    for name, tensor in load_file(result.weights).items():
        assert torch.equal(started.model.backbone.state_dict()[name], tensor), name
    data = squares(tmp_path / "data", images=2)
    train(
        TrainConfig(
            data=str(data), model=str(tiny_model(tmp_path)), epochs=1, image_size=64, batch_size=2, workers=0,
            backbone_weights=result.weights, output=tmp_path / "train",
        ),
        quiet=True,
    )  # fmt: skip


def test_the_loss_falls(settings):
    nextdetr.pretrain(**settings | {"epochs": 60, "batch_size": 6, "learning_rate": 1e-3, "decoder_width": 96}, quiet=True)
    losses = [float(row["loss"]) for row in rows(settings["output"])]
    assert sum(losses[-4:]) / 4 < 0.96 * losses[0]


@pytest.mark.parametrize(("steps", "ema"), [(2, 0.0), (3, 0.9), (5, 0.0)])
def test_a_resumed_run_equals_the_uninterrupted_one(settings, tmp_path, monkeypatch, steps, ema):
    whole = tmp_path / "whole"
    settings["ema_decay"] = ema
    nextdetr.pretrain(**settings | {"output": whole}, quiet=True)
    stop_after(monkeypatch, Pretrainer, steps)
    with pytest.raises(Interrupted, match="pretrain --resume"):
        nextdetr.pretrain(**settings, quiet=True)
    monkeypatch.undo()
    nextdetr.pretrain(resume=settings["output"], quiet=True)
    assert rows(settings["output"]) == rows(whole)
    first, second = (load_file(folder / "backbone.safetensors") for folder in (whole, settings["output"]))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    states = [torch.load(folder / "last.ckpt", weights_only=True)["model"] for folder in (whole, settings["output"])]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_other_images_are_told_and_an_image_that_goes_costs_nothing(settings, tmp_path, monkeypatch, capsys):
    own = tmp_path / "own"
    shutil.copytree(settings["images"], own)
    sample = UnlabelledDataset.__getitem__

    def unplugged(self, key):
        if (key.epoch, key.index) == (1, 3):
            raise DataError("3.png cannot be read")
        return sample(self, key)

    monkeypatch.setattr(UnlabelledDataset, "__getitem__", unplugged)
    with pytest.raises(DataError, match=r"3\.png"):
        nextdetr.pretrain(**settings | {"images": str(own)}, quiet=True)
    monkeypatch.undo()
    assert torch.load(settings["output"] / "last.ckpt", weights_only=True)["cursor"]["step"] >= 3
    (own / "3.png").unlink()
    nextdetr.pretrain(resume=settings["output"])
    assert "not exactly as it would have" in " ".join(capsys.readouterr().err.split())
    assert len(rows(settings["output"])) == 2


def test_a_resumed_run_needs_no_initial_weights(settings, tmp_path):
    first = nextdetr.pretrain(**settings | {"epochs": 1}, quiet=True)
    start, second = tmp_path / "start.safetensors", tmp_path / "second"
    shutil.copy(first.weights, start)
    nextdetr.pretrain(**settings | {"epochs": 1, "weights": start, "output": second}, quiet=True)
    start.unlink()
    nextdetr.pretrain(resume=second, epochs=2, quiet=True)
    with safe_open(second / "backbone.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["source_weights"].endswith("start.safetensors")
    assert (metadata["weights_licence"], metadata["pretraining"]) == ("none", "fcmae")


def test_averaged_weights_are_kept_when_asked_for(settings):
    result = nextdetr.pretrain(**settings | {"ema_decay": 0.99}, quiet=True)
    state = torch.load(settings["output"] / "last.ckpt", weights_only=True)
    kept = load_file(result.weights)
    name = "stages.3.1.pwconv1.weight"
    assert torch.equal(kept[name], state["ema"]["module"][name])
    assert not torch.equal(kept[name], state["model"]["encoder." + name])


def test_a_picture_that_cannot_be_drawn_ends_nothing(settings, monkeypatch, capsys):
    def gone(self, *arguments):
        raise DataError("5.png cannot be read.")

    monkeypatch.setattr(Reconstructions, "draw", gone)
    assert nextdetr.pretrain(**settings).epochs == 2
    assert "5.png cannot be read. The picture of reconstructions is left out." in capsys.readouterr().err


def test_mask_ratio_and_patch_size_are_real(settings, monkeypatch):
    seen = []
    draw = FCMAE.draw_mask

    def spy(self, images, noise=None):
        masking = draw(self, images, noise)
        seen.append((masking.visible.ids.shape[1], masking.hidden.ids.shape[1]))
        return masking

    monkeypatch.setattr(FCMAE, "draw_mask", spy)
    nextdetr.pretrain(**settings | {"image_size": 128, "mask_ratio": 0.25, "epochs": 1}, quiet=True)
    assert set(seen) == {(12, 4)}
    seen.clear()
    other = settings | {"image_size": 256, "patch_size": 64, "mask_ratio": 0.75, "epochs": 1}
    nextdetr.pretrain(**other | {"output": settings["output"].with_name("other")}, quiet=True)
    assert set(seen) == {(4, 12)}


def test_minutes_end_the_run_in_time(settings):
    del settings["epochs"]
    result = nextdetr.pretrain(**settings | {"minutes": 0.05}, quiet=True)
    assert result.epochs >= 1
    assert result.seconds < 15


def test_no_time_at_all_is_one_step(settings):
    del settings["epochs"]
    result = nextdetr.pretrain(**settings | {"minutes": 1e-6}, quiet=True)
    assert result.epochs == 1
    assert result.loss > 0
    assert [row["step"] for row in rows(settings["output"])] == ["1"]


def test_a_run_stopped_in_its_first_epoch_can_be_ended_at_once(settings, monkeypatch):
    stop_after(monkeypatch, Pretrainer, 1)
    with pytest.raises(Interrupted):
        nextdetr.pretrain(**settings, quiet=True)
    monkeypatch.undo()
    result = nextdetr.pretrain(resume=settings["output"], minutes=1e-6, quiet=True)
    assert result.epochs == 1
    assert [row["step"] for row in rows(settings["output"])] == ["1"]


def test_it_goes_on_from_weights_of_the_same_size(settings, tmp_path):
    first = nextdetr.pretrain(**settings | {"epochs": 1}, quiet=True)
    again = settings | {"epochs": 1, "output": tmp_path / "again", "weights": first.weights, "learning_rate": 1e-12}
    second = nextdetr.pretrain(**again, quiet=True)
    torch.testing.assert_close(load_file(first.weights), load_file(second.weights), rtol=0, atol=1e-6)
    with pytest.raises(WeightsError, match="do not fit --model"):
        nextdetr.pretrain(**again | {"model": "convnextv2-femto", "output": tmp_path / "femto"}, quiet=True)


def test_norms_grn_biases_and_the_mask_token_do_not_decay():
    model = FCMAE(convnextv2("atto"))
    decayed, spared = build_pretraining_optimizer(model, 1e-3, 0.05).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert decayed["weight_decay"] == 0.05
    assert spared["weight_decay"] == 0
    assert decayed["betas"] == (0.9, 0.95)
    for parameter in decayed["params"]:
        name = names.pop(id(parameter))
        assert name.endswith(".weight")
        assert parameter.ndim > 1
        assert ".grn." not in name
    for parameter in spared["params"]:
        name = names.pop(id(parameter))
        assert name.endswith(("bias", "grn.gamma", "grn.beta", "mask_token")) or parameter.ndim == 1
    assert not names


@pytest.mark.parametrize(
    ("count", "cpu", "batch"), [(5, True, 8), (205, True, 8), (2000, True, 64), (1_300_000, False, 256), (800, False, 32)]
)
def test_the_batch_follows_the_number_of_images(count, cpu, batch):
    assert default_batch(count, cpu=cpu) == batch


def test_length_and_rate_follow_the_number_of_images(settings, monkeypatch):
    monkeypatch.setattr(Pretrainer, "run", lambda self: self)
    for name in ("epochs", "batch_size"):
        del settings[name]
    run = run_pretraining(PretrainConfig(**settings), quiet=True)
    assert run.config.batch_size == 8
    assert run.config.epochs == 5000  # one step an epoch
    assert run.config.learning_rate == pytest.approx(2.5e-4)  # the square-root rule would give 1.06e-4


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": ()}, DataError, "folder of images"),
        ({"images": "nowhere"}, DataError, "nowhere"),
        ({"model": "nextdetr-atto"}, ConfigError, "one of convnextv2-zepto, convnextv2-atto"),
        ({"image_size": 200}, ConfigError, "the nearest are 192 and 224"),
        ({"patch_size": 48}, ConfigError, "--patch-size must be a multiple of 32"),
        ({"patch_size": 64}, ConfigError, "a single patch of 64, .* 128 at least"),
        ({"minutes": 3}, ConfigError, "give one of them"),
        ({"mask_ratoi": 0.5}, ConfigError, "mask_ratio"),
        ({"weights": "no.safetensors"}, WeightsError, "no such file"),
    ],
)
def test_mistakes_are_found_before_training(settings, changes, error, message):
    with pytest.raises(error, match=message):
        nextdetr.pretrain(**settings | changes, quiet=True)


def test_a_run_is_not_overwritten_and_resume_refuses_other_settings(settings):
    nextdetr.pretrain(**settings | {"epochs": 1}, quiet=True)
    with pytest.raises(ConfigError, match="holds a run already"):
        nextdetr.pretrain(**settings, quiet=True)
    with pytest.raises(ConfigError, match="leave out --mask-ratio"):
        nextdetr.pretrain(resume=settings["output"], mask_ratio=0.5, quiet=True)


def test_a_non_finite_loss_is_reported(settings, monkeypatch):
    forward = FCMAE.forward
    monkeypatch.setattr(FCMAE, "forward", lambda self, *values: forward(self, *values) * float("nan"))
    with pytest.raises(TrainingError, match=r"epoch 1, step 1 \(images .*\.png"):
        nextdetr.pretrain(**settings, quiet=True)


def test_bf16(settings):
    result = nextdetr.pretrain(**settings | {"precision": "bf16-mixed", "epochs": 1}, quiet=True)
    assert result.loss > 0


@pytest.mark.slow
def test_two_processes_equal_one_with_the_doubled_batch(settings, tmp_path):
    """Masks, crops and rates do not depend on the number of processes; gradients are averaged over all images."""
    results = []
    for devices, batch in ((1, 4), (2, 2)):
        folder = tmp_path / f"devices{devices}"
        command = [
            sys.executable, "-m", "nextdetr", "pretrain", str(settings["images"]), "--image-size", "64", "--epochs", "3",
            "--batch-size", str(batch), "--workers", "0", "--devices", str(devices), "--accelerator", "cpu",
            "--learning-rate", "1e-3", "--decoder-width", "32", "--output", str(folder), "--json",
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads(done.stdout)["epochs"] == 3
        results.append(folder)
    losses = [[float(row["loss"]) for row in rows(folder)] for folder in results]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    one, two = (load_file(folder / "backbone.safetensors") for folder in results)
    torch.manual_seed(0)  # as the runs began
    fresh = convnextv2("atto").state_dict()
    for name, tensor in one.items():
        moved = float((tensor - fresh[name]).abs().max())
        assert float((tensor - two[name]).abs().max()) <= 0.02 * max(moved, 1e-3), name


def test_weights_with_grn_are_not_taken_without_it(settings, tmp_path):
    first = nextdetr.pretrain(**settings | {"epochs": 1}, quiet=True)
    with pytest.raises(WeightsError, match="these weights have GRN, without which they are of no use; leave --no-grn out"):
        nextdetr.pretrain(**settings | {"weights": first.weights, "grn": False, "output": tmp_path / "other"}, quiet=True)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_masks_and_targets_are_exact_in_any_precision(settings, monkeypatch, precision):
    """In bfloat16, two numbers in fifty are equal, and grey levels are off by up to half of one."""
    seen, draw = [], FCMAE.draw_mask

    def spy(self, images, noise=None):
        seen.append((images * self.std + self.mean, noise))
        return draw(self, images, noise)

    monkeypatch.setattr(FCMAE, "draw_mask", spy)
    nextdetr.pretrain(**settings | {"precision": precision, "epochs": 1}, quiet=True)
    images, noise = seen[0]
    assert not torch.equal(noise.float(), noise.bfloat16().float())
    assert not torch.allclose(images.float(), images.bfloat16().float(), atol=1e-4)
