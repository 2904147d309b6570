"""For benchmarks against peers: our data in their layout, and their predictions in our evaluator."""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml

from nextdetr.data.records import DetectionData
from nextdetr.data.sources import load_data
from nextdetr.engine.evaluate import CocoEvaluator, EvalResult
from nextdetr.errors import DataError
from nextdetr.postprocess import Detected

__all__ = ["read_splits", "score_predictions", "write_yolo"]


def read_splits(data: str) -> dict[str, DetectionData]:
    """Return train, val and, if there is one, test, with the classes of train."""
    splits = {"train": load_data(data, "train")}
    splits["val"] = load_data(data, "val", classes=splits["train"].classes)
    with contextlib.suppress(DataError):  # many data sets have none
        splits["test"] = load_data(data, "test", classes=splits["train"].classes)
    return splits


def write_yolo(splits: Mapping[str, DetectionData], folder: Path) -> Path:
    """Write the splits as a YOLO data set whose images are links; return its ``data.yaml``. Crowds are omitted.

    Images are named by split and position, since their own names may not be unique.
    """
    for split, data in splits.items():
        images, labels = folder / "images" / split, folder / "labels" / split
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        for index, record in enumerate(data.records):
            name = f"{split}-{index:06d}"
            link = images / f"{name}{record.path.suffix}"
            link.unlink(missing_ok=True)
            link.symlink_to(record.path.resolve())
            kept = ~np.asarray(record.crowd, dtype=bool)
            boxes = np.asarray(record.boxes, dtype=np.float64)[kept] / ([record.width, record.height] * 2)
            centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
            rows = zip(np.asarray(record.labels)[kept].tolist(), centres.tolist(), sides.tolist(), strict=True)
            text = "".join(f"{label} {x:.8f} {y:.8f} {w:.8f} {h:.8f}\n" for label, (x, y), (w, h) in rows)
            (labels / f"{name}.txt").write_text(text, encoding="utf-8")
    content = {
        "path": str(folder.resolve()),
        **{split: f"images/{split}" for split in splits},
        "names": dict(enumerate(splits["train"].classes)),
    }
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def score_predictions(path: Path, data: DetectionData) -> EvalResult:
    """Score COCO results (image id = position in the split, category id = class index, boxes xywh) with our evaluator."""
    found = defaultdict(list)
    for row in json.loads(path.read_text(encoding="utf-8")):
        found[row["image_id"]].append(row)
    evaluator = CocoEvaluator(data)
    for index, record in enumerate(data.records):
        rows = sorted(found[index], key=lambda row: -row["score"])
        corners = np.array([row["bbox"] for row in rows], np.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        limits = np.array([record.width, record.height] * 2, np.float32)
        scores = np.array([row["score"] for row in rows], np.float32)
        labels = np.array([row["category_id"] for row in rows], np.int64)
        evaluator.update(index, Detected(corners.clip(0, limits), scores, labels))
    return evaluator.summarize()
