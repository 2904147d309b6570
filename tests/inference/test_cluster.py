from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextdetr import Detector
from nextdetr.cli.main import run
from nextdetr.errors import ConfigError
from tests.export.helpers import checkpoint

ray = pytest.importorskip("ray", reason="the extra ray is not installed")
parquet = pytest.importorskip("pyarrow.parquet", reason="the extra ray is not installed")

CONFIDENCE = 0.1
SETTINGS = ["--confidence", str(CONFIDENCE), "--batch-size", "2"]


@pytest.fixture(scope="module")
def cluster():
    yield
    ray.shutdown()


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(7):
        pixels = np.random.default_rng(number).integers(0, 255, (40 + number, 60, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "3.png").write_bytes(b"no image")
    if sys.platform == "linux":
        (folder / "6.png").rename(folder / os.fsdecode(b"m\xfcnze.png"))
    if sys.platform != "win32":
        (folder / "7.png").symlink_to(folder / "0.png")  # another name of one file
    else:
        (folder / "7.png").write_bytes((folder / "0.png").read_bytes())
    return folder


def rows_of(path):
    return sorted(parquet.read_table(path).to_pylist(), key=lambda row: row["path"])


def unmatched(expected, got):
    """Detections without a counterpart in ``got``: workers batch and round otherwise, which swaps near ties in the order.

    One at the threshold may be missing for the same reason."""
    return [
        one
        for one in expected
        if one["confidence"] > CONFIDENCE + 1e-4
        and not any(
            two["class_name"] == one["class_name"]
            and two["confidence"] == pytest.approx(one["confidence"], abs=1e-4)
            and two["box"] == pytest.approx(one["box"], abs=1e-2)
            for two in got
        )
    ]


def _linked(model: Path) -> Path:
    """Let a model's name be a link to one without an ending, as in the Hub's cache."""
    if sys.platform != "win32":
        model.symlink_to(model.rename(model.with_name("blob")))
    return model


@pytest.mark.slow
def test_two_workers_give_the_rows_of_a_single_process(cluster, photos, tmp_path, capsys):
    source = str(_linked(checkpoint(tmp_path, "nextdetr-atto", 64)))
    for name, engine in (("one", []), ("two", ["--engine", "ray", "--workers", "2"])):
        sources = [str(photos), str(photos / "1.png")]  # one image named twice
        assert run(["predict", source, *sources, "--output", str(tmp_path / f"{name}.parquet"), *SETTINGS, *engine]) == 0
    assert "skipped" in capsys.readouterr().err
    expected, got = rows_of(tmp_path / "one.parquet"), rows_of(tmp_path / "two.parquet")
    assert len(got) == len(expected) == 8
    assert sum(len(row["detections"]) for row in got) > 20
    for first, second in zip(expected, got, strict=True):
        assert {name: first[name] for name in ("path", "width", "height")} == {
            name: second[name] for name in ("path", "width", "height")
        }
        assert (first["problem"] is None) == (second["problem"] is None)
        assert not unmatched(first["detections"], second["detections"])
        assert not unmatched(second["detections"], first["detections"])


def test_what_ray_cannot_do_is_said(photos, tmp_path, capsys):
    assert run(["predict", "nextdetr-atto", str(photos), "--engine", "ray"]) == 2
    assert "--output NAME.parquet" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="name a checkpoint"):
        Detector("nextdetr-atto").predict(str(photos), output=tmp_path / "x.parquet", engine="ray")
