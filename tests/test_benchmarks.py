"""What the benchmark against peers is built on: the data set that they get, and the scores of what they find."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from nextdetr.data.sources import load_data
from tests.helpers import squares


@pytest.fixture
def peer_data(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    sys.modules.pop("peer_data", None)
    import peer_data

    return peer_data


def test_peers_get_the_same_images_boxes_and_splits(peer_data, tmp_path):
    splits = peer_data.read_splits(str(squares(tmp_path / "ours")))
    assert set(splits) == {"train", "val"}
    path = peer_data.write_yolo(splits, tmp_path / "theirs")
    peer_data.write_yolo(splits, tmp_path / "theirs")  # again, over what is there
    for split, data in splits.items():
        read = load_data(path, split)
        assert read.classes == data.classes
        assert [record.path.resolve() for record in read.records] == [record.path.resolve() for record in data.records]
        for theirs, ours in zip(read.records, data.records, strict=True):
            np.testing.assert_allclose(theirs.boxes, ours.boxes, atol=1e-3)
            assert theirs.labels.tolist() == ours.labels.tolist()


def test_predictions_are_scored_by_position(peer_data, tmp_path):
    data = peer_data.read_splits(str(squares(tmp_path / "ours")))["val"]
    rows = [
        {"image_id": index, "category_id": int(label), "bbox": [x1, y1, x2 - x1, y2 - y1], "score": 0.9}
        for index, record in enumerate(data.records)
        for (x1, y1, x2, y2), label in zip(record.boxes.tolist(), record.labels.tolist(), strict=True)
    ]
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps(rows))
    assert peer_data.score_predictions(path, data).metrics["AP"] == pytest.approx(1.0)
    for row in rows:
        row["category_id"] = 1 - row["category_id"]
    path.write_text(json.dumps(rows))
    assert peer_data.score_predictions(path, data).metrics["AP50"] == 0
    path.write_text("[]")
    assert peer_data.score_predictions(path, data).metrics["AP"] == 0
