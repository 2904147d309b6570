"""The name of a run without a given folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from nextdetr.config import TrainConfig
from nextdetr.engine.setup import default_output, resolve_config
from nextdetr.models.convnextv2 import ConvNeXtV2
from nextdetr.weights.checkpoint import open_model, save_opened
from nextdetr.weights.convert import save_backbone
from nextdetr.weights.load import open_weights
from tests.helpers import tiny_model


@pytest.mark.parametrize(
    ("data", "name"), [(".", "photos"), ("1/..", "photos"), ("../photos/data.yaml", "data"), ("/x/photos/", "photos")]
)
def test_run_is_named_after_its_data_also_where_they_are_a_dot(tmp_path, monkeypatch, data, name):
    (tmp_path / "photos" / "1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "photos")
    assert default_output(TrainConfig(data=data)) == Path(f"runs/nextdetr-atto-{name}")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("runs/graft-femto/last.safetensors", "graft-femto"),
        ("runs/a/best.safetensors", "a"),
        ("best.safetensors", "here"),
        ("runs/a/cells.safetensors", "cells"),
        ("models/last.yaml", "last"),
    ],
)
def test_run_from_a_checkpoint_is_named_after_the_run_that_wrote_it(model, name, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert default_output(TrainConfig(data="photos", model=model)) == Path(f"runs/{name}-photos")


@pytest.fixture
def deep(tmp_path):
    """A detector and a backbone that were trained on images of 12 bits."""
    run = tmp_path / "deep"
    run.mkdir()
    opened = open_model(tiny_model(tmp_path), num_classes=1)
    detector = save_opened(run / "best.safetensors", opened, classes=["a"], extra={"bits": "12"})
    state = ConvNeXtV2((2, 2, 6, 2), (40, 80, 160, 320)).state_dict()
    backbone = save_backbone(
        tmp_path / "backbone.safetensors", state, weights_licence="none", source_weights="none", bits="12"
    )
    return detector, backbone


def test_a_run_reads_images_as_its_weights_did(deep):
    detector, backbone = deep
    for given in (
        {"model": str(detector)},
        {"model": str(detector.parent)},
        {"model": "nextdetr-atto", "weights": detector},
        {"model": "nextdetr-atto", "weights": detector.parent},
        {"model": "nextdetr-atto", "backbone_weights": backbone},
    ):
        assert resolve_config(TrainConfig(data="cells", **given)).bits == 12, given
        assert resolve_config(TrainConfig(data="cells", bits=10, **given)).bits == 10
    assert resolve_config(TrainConfig(data="cells", model="nextdetr-atto")).bits == 16
    assert resolve_config(TrainConfig(data="cells", model="nextdetr-atto", weights="owner/name")).bits == 16


def test_the_folder_of_a_run_stands_for_its_best_weights(deep):
    detector, _ = deep
    save_opened(detector.with_name("last.safetensors"), open_model(detector), extra={"bits": "9"})
    file, identity = open_weights(detector.parent)
    assert (file.path, file.metadata["bits"]) == (detector, "12")
    assert identity == open_weights(detector)[1]
