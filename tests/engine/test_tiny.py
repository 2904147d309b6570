"""The smallest data and settings: one picture, one class, one box, one image a step, 32 px."""

from __future__ import annotations

import json

import pytest

from nextdetr.config import PretrainConfig, TrainConfig
from nextdetr.engine.pretrain import run_pretraining
from nextdetr.engine.train import train
from nextdetr.errors import DataError
from tests.helpers import squares, tiny_model


@pytest.fixture
def settings(tmp_path):
    folder = squares(tmp_path / "data", images=1, empty=False)
    for split in ("train", "val"):
        file = folder / "annotations" / f"instances_{split}.json"
        content = json.loads(file.read_text())
        content |= {"annotations": content["annotations"][:1], "categories": content["categories"][:1]}
        file.write_text(json.dumps(content))
    return {
        "data": str(folder), "model": str(tiny_model(tmp_path)), "epochs": 1, "image_size": 32, "workers": 0,
        "accelerator": "cpu", "output": tmp_path / "run",
    }  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {"mosaic": 1.0, "mixup": 1.0, "copy_paste": 1.0, "augmentation": "full", "strong_until": 1.0, "epochs": 2},
        {"accumulate": 5, "balance": True, "cache": "shrunk", "workers": 2, "drop_path": 0.5},
    ],
)
def test_one_picture_a_step_trains(settings, options):
    result = train(TrainConfig(**{**settings, "batch_size": 1, **options}), quiet=True)
    assert result.best["epoch"] >= 1
    assert result.best["metrics"]["AP"] is not None


def test_a_validation_part_without_a_box_or_an_image(settings):
    file = settings["output"].parent / "data" / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"annotations": []}))
    result = train(TrainConfig(**settings, batch_size=2, patience=1), quiet=True)
    assert result.best["metrics"]["AP"] is None
    file.write_text(json.dumps(content | {"annotations": [], "images": []}))
    settings["output"] = settings["output"].with_name("other")
    with pytest.raises(DataError, match="val is empty"):
        train(TrainConfig(**settings, batch_size=2), quiet=True)


def test_one_picture_pre_trains(tmp_path, settings):
    wanted = {"images": (f"{settings['data']}/images/train",), "epochs": 1, "workers": 0, "accelerator": "cpu"}
    result = run_pretraining(PretrainConfig(**wanted, image_size=64, output=tmp_path / "b", batch_size=1), quiet=True)
    assert result.epochs == 1
