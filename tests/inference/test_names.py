"""File names that are not UTF-8, as from old archives: every result is written, with the name escaped."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys

import numpy as np
import pytest

from nextdetr.config import PredictConfig
from nextdetr.files import path_text
from nextdetr.inference.pipeline import predict_stream
from nextdetr.inference.predictor import Predictor
from nextdetr.inference.pytorch.embed import Embeddings, write_embeddings
from nextdetr.inference.writers.video import VideoWriter
from tests.inference.conftest import CLASSES

NAME = os.fsdecode(b"m\xfcnze")
SHOWN = "m\\xfcnze"

pytestmark = pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file systems there have no such names")


@pytest.fixture
def photos(scene, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    scene.save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", os.fsencode(folder / f"{NAME}.png"))
    (folder / f"{NAME}-2.png").write_bytes(b"no image")
    return folder


def run(model, source, output, **settings):
    return list(predict_stream(Predictor(model, CLASSES, 200), source, PredictConfig(output=output, **settings)))


def test_path_text():
    assert path_text(f"a/{NAME}.png") == f"a/{SHOWN}.png"
    assert path_text("ü/血.png") == "ü/血.png"
    assert path_text("\ud83d") == "\\ud83d"


def test_pictures_labels_and_json(model, photos, tmp_path):
    results = run(model, str(photos), tmp_path / "out", save=("images", "json", "yolo"))
    (row, *_) = json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))
    assert row["file_name"] == str(photos / f"{SHOWN}.png")
    assert [path.name for path in (tmp_path / "out" / "images").iterdir()] == [f"{SHOWN}.jpg"]
    assert [path.name for path in (tmp_path / "out" / "labels").iterdir()] == [f"{SHOWN}.txt"]
    for result in results:
        json.dumps(result.to_json(), ensure_ascii=False).encode()
    assert SHOWN in next(result.to_json()["problem"] for result in results if result.problem)


def test_a_table_is_written_and_resumed(model, photos, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    output = tmp_path / "t.parquet"
    stream = predict_stream(Predictor(model, CLASSES, 200), str(photos), PredictConfig(output=output))
    next(stream), next(stream)
    stream.close()
    done = len(model.batches)
    run(model, str(photos), output)
    assert len(model.batches) == done, "images of the first run were looked at again"
    assert sorted(parquet.read_table(output).column("path").to_pylist()) == [
        str(photos / f"{SHOWN}-2.png"), str(photos / f"{SHOWN}.png")
    ]  # fmt: skip


def test_videos_in_folders_of_such_names(model, tmp_path):
    folder = tmp_path / NAME
    with VideoWriter(folder / f"{NAME}.mp4", 64, 48, 10) as writer:
        for number in range(3):
            writer.write(np.full((48, 64, 3), 255, np.uint8), number / 10)
    run(model, str(folder / f"{NAME}.mp4"), folder / "out", save=("images", "json"))
    assert sorted(path.name for path in (folder / "out" / "videos").iterdir()) == [f"{SHOWN}.jsonl", f"{SHOWN}.mp4"]
    lines = [json.loads(line) for line in (folder / "out" / "videos" / f"{SHOWN}.jsonl").read_bytes().splitlines()]
    assert [line["path"] for line in lines] == [path_text(folder / f"{NAME}.mp4")] * 3


def test_vectors(tmp_path):
    result = Embeddings("m", 0, [f"{NAME}.png"], np.ones((1, 2), np.float32))
    assert result.to_json()["images"][0]["path"] == f"{SHOWN}.png"
    with write_embeddings(result, tmp_path / "v.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file))[1] == [f"{SHOWN}.png", "1", "1"]
    with np.load(write_embeddings(result, tmp_path / "v.npz"), allow_pickle=False) as file:
        assert file["paths"].tolist() == [f"{SHOWN}.png"]
