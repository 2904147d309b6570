from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from nextdetr.analysis import probe as probe_module
from nextdetr.analysis.probe import _solve, confusion, fit_linear
from nextdetr.cli.main import run
from nextdetr.config import ProbeConfig
from nextdetr.data.classes import read_class_folders
from nextdetr.errors import DataError


def _images(folder, count, colour, size=40):
    folder.mkdir(parents=True)
    generator = np.random.default_rng(len(folder.name))
    for number in range(count):
        pixels = generator.integers(0, 120, (size, size, 3), dtype=np.uint8)
        pixels[..., colour] = 255 - pixels[..., colour] // 2
        Image.fromarray(pixels).save(folder / f"{number}.png")


def test_split_is_by_class_and_repeatable(tmp_path):
    for number, name in enumerate(("red", "green", "blue")):
        _images(tmp_path / name, 4 + 4 * number, number)
    (tmp_path / "notes").mkdir()
    (tmp_path / "red" / "broken.png").write_bytes(b"no image")
    data = read_class_folders(tmp_path, held_out=0.25)
    assert data.classes == ["blue", "green", "red"]
    assert [sum(label == k for _, label in data.held_out) for k in range(3)] == [3, 2, 1]
    assert not {path for path, _ in data.train} & {path for path, _ in data.held_out}
    assert len(data.train) + len(data.held_out) == 24
    assert len(data.skipped) == 1
    assert "broken.png" in data.skipped[0]
    assert read_class_folders(tmp_path) == data
    assert read_class_folders(tmp_path, seed=1) != data


def test_a_folder_with_its_own_split(tmp_path):
    for part, count in (("train", 3), ("val", 2)):
        _images(tmp_path / part / "a", count, 0)
        _images(tmp_path / part / "b", count, 1)
    data = read_class_folders(tmp_path)
    assert (len(data.train), len(data.held_out)) == (6, 4)
    _images(tmp_path / "val" / "c", 1, 2)
    with pytest.raises(DataError, match="no class c"):
        read_class_folders(tmp_path)
    shutil.rmtree(tmp_path / "val")
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError, match="nothing to score on"):
        read_class_folders(tmp_path)


def test_what_cannot_be_used_is_named(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        read_class_folders(tmp_path / "nowhere")
    _images(tmp_path / "a", 3, 0)
    with pytest.raises(DataError, match="at least two classes; there are 1"):
        read_class_folders(tmp_path)
    _images(tmp_path / "b", 1, 0)
    with pytest.raises(DataError, match=r"b: a class needs at least two images"):
        read_class_folders(tmp_path)


def test_the_linear_solution_is_the_optimum():
    x, labels = torch.randn(60, 5, dtype=torch.float64), torch.randint(0, 3, (60,))
    weight, bias = (tensor.requires_grad_() for tensor in _solve(x, labels, 3, 0.05))
    loss = cross_entropy(x @ weight.T + bias, labels) + 0.025 * weight.square().sum()
    for gradient in torch.autograd.grad(loss, (weight, bias)):
        assert float(gradient.abs().max()) < 1e-4


def test_linear_fit_learns_and_survives_constant_features():
    labels = torch.randint(0, 3, (90,))
    x = torch.randn(90, 8)
    x[:, :3] += 6 * torch.nn.functional.one_hot(labels, 3)
    x[:, 7] = 4.0
    predict = fit_linear(x[:60], labels[:60], 3)
    assert float((predict(x[60:]).argmax(1) == labels[60:]).float().mean()) > 0.9


def test_confusion_counts_true_rows_and_predicted_columns():
    predicted, truth = torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 1, 0])
    assert confusion(predicted, truth, 3) == [[1, 1, 1], [0, 1, 0], [0, 0, 0]]


def test_the_rate_of_fine_tuning_rises_over_a_tenth_and_falls(tmp_path, monkeypatch):
    _images(tmp_path / "red", 3, 0)
    _images(tmp_path / "green", 3, 1)
    factors, set_rate = [], probe_module.set_rate

    def watched(optimizer, factor):
        factors.append(factor)
        return set_rate(optimizer, factor)

    monkeypatch.setattr(probe_module, "set_rate", watched)
    config = ProbeConfig(image_size=32, epochs=10, batch_size=4, device="cpu")
    probe_module.probe("convnextv2-atto", tmp_path, config)
    assert factors[0] == pytest.approx(0.5)
    assert factors[1] == max(factors) > 0.9
    assert factors[1:] == sorted(factors[1:], reverse=True)
    assert factors[-1] < 0.05


def test_command(tmp_path, capsys):
    _images(tmp_path / "data" / "red", 8, 0)
    _images(tmp_path / "data" / "green", 8, 1)
    code = run(
        ["probe", "convnextv2-atto", str(tmp_path / "data"), "--image-size", "64", "--epochs", "12", "--batch-size", "6",
         "--device", "cpu", "--json"]
    )  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert code == 0, found
    assert found["classes"] == ["green", "red"]
    assert (found["train_images"], found["held_out_images"]) == (12, 4)
    assert found["linear"]["accuracy"] == 1.0
    assert found["linear"]["confusion"] == [[2, 0], [0, 2]]
    assert found["fine_tuned"]["accuracy"] == 1.0
    code = run(["probe", "convnextv2-atto", str(tmp_path / "data"), "--image-size", "64", "--no-fine-tune", "--json"])
    assert code == 0
    assert json.loads(capsys.readouterr().out)["fine_tuned"] is None
