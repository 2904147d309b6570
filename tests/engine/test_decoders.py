"""Training with every decoder and loss that can be chosen: a run of an epoch each, from the model file to the table."""

from __future__ import annotations

import csv

import pytest

from nextdetr.config import TrainConfig
from nextdetr.engine.train import train
from tests.helpers import TINY_MODEL, squares

PLAIN = "RTDETRDecoder, [nc, 32, 20, 2, 4, 2, 64]"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return squares(tmp_path_factory.mktemp("squares"))


@pytest.mark.parametrize(
    ("row", "options", "columns", "absent"),
    [
        (PLAIN, {"class_loss": "matchability"}, ["loss_mal", "loss_mal_encoder"], ["loss_vfl", "loss_fgl"]),
        (
            "DFINEDecoder, [nc, 32, 20, [2, 3], 4, 2, 64, {bins: 8}]",
            {"class_loss": "matchability"},
            ["loss_mal_initial", "loss_fgl", "loss_ddf_aux", "loss_ddf_denoising"],
            ["loss_vfl", "loss_ddf"],
        ),
        (
            "RTDETRDecoder, [nc, 32, 20, 2, 4, 2, 64, {dense: True}]",
            {},
            ["loss_vfl", "loss_vfl_dense", "loss_giou_dense"],
            ["loss_fgl"],
        ),
    ],
)
def test_a_run(data, tmp_path, row, options, columns, absent):
    assert PLAIN in TINY_MODEL
    model = tmp_path / "tiny.yaml"
    model.write_text(TINY_MODEL.replace(PLAIN, row))
    settings = {"epochs": 1, "image_size": 64, "batch_size": 2, "workers": 0, "output": tmp_path / "run"}
    result = train(TrainConfig(data=str(data), model=str(model), **settings, **options), quiet=True)
    assert result.best["metrics"]["AP"] is not None
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        (written,) = csv.DictReader(file)
    assert all(float(written[name]) > 0 for name in columns)
    assert not any(name in written for name in absent)
