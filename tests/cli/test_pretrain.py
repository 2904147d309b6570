from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from nextdetr.cli.main import run


@pytest.fixture
def folders(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(2):
            pixels = np.random.default_rng().integers(0, 256, (70, 66, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    return [str(tmp_path / "a"), str(tmp_path / "b")]


def _json(capsys):
    out = capsys.readouterr().out
    assert len(out.strip().splitlines()) == 1
    return json.loads(out)


def test_command_and_resume(folders, tmp_path, capsys):
    (tmp_path / "settings.yaml").write_text("image-size: 64\nbatch-size: 4\nworkers: 0\nepochs: 3\nmask_ratio: 0.5\n")
    output = tmp_path / "run"
    options = ["--config", str(tmp_path / "settings.yaml"), "--epochs", "1", "--output", str(output), "--json"]
    code = run(["pretrain", *folders, *options])
    result = _json(capsys)
    assert code == 0, result
    assert set(result) == {"command", "output", "epochs", "seconds", "images_per_second", "loss", "weights"}
    assert result["epochs"] == 1
    assert "mask_ratio: 0.5" in (output / "config.yaml").read_text()
    cursor = torch.load(output / "last.ckpt", weights_only=True)["cursor"]
    assert (cursor["images"], cursor["step"]) == (4, 1)  # both folders

    code = run(["pretrain", "--resume", str(output), "--epochs", "2", "--json"])
    result = _json(capsys)
    assert code == 0, result
    assert result["epochs"] == 2
    code = run(["pretrain", "--resume", str(output), "--mask-ratio", "0.7", "--json"])
    assert code == 2
    assert "--mask-ratio" in _json(capsys)["error"]["message"]


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ([], "DataError", "folder of images"),
        (["nowhere"], "DataError", "nowhere"),
        (["--image-size", "100"], "ConfigError", "the nearest are 96 and 128"),
        (["--mask-ratio", "1.5"], "ConfigError", "--mask-ratio"),
        (["--patch-size", "40"], "ConfigError", "--patch-size"),
        (["x", "--model", "nextdetr-atto"], "ConfigError", "convnextv2-atto"),
    ],
)
def test_mistakes(arguments, kind, words, capsys):
    assert run(["pretrain", *arguments, "--json"]) == 2
    error = _json(capsys)["error"]
    assert error["type"] == kind
    assert words in error["message"]
