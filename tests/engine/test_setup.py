"""The name of a run without a given folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from nextdetr.config import TrainConfig
from nextdetr.engine.setup import default_output


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
