"""Random splits for the analyses: boxes with crowds and empty images, and detections of several kinds of error."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nextdetr.data.records import DetectionData, ImageRecord

CLASSES = ["cat", "dog", "fish", "bird"]  # the last class has no box


def random_split(seed: int, images: int = 25, crowds: float = 0.1) -> tuple[DetectionData, dict]:
    rng = np.random.default_rng(seed)
    records, found = [], {}
    for position in range(images):
        number = int(rng.integers(0, 7))
        corners = rng.integers(0, 240, (number, 2))
        boxes = np.concatenate((corners, corners + rng.integers(8, 200, (number, 2))), axis=1).astype(np.float32)
        labels = rng.integers(0, 3, number)
        crowd = rng.random(number) < crowds
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1).astype(np.float32)
        records.append(
            ImageRecord(Path(f"{position}.jpg"), 3 * position + 2, 480, 480, boxes, labels.astype(np.int64), crowd, areas)
        )
        if position == 3:
            continue  # nothing is found
        near = boxes[rng.integers(0, number, 12)] if number else np.zeros((0, 4), np.float32)
        near = near + rng.normal(0, 1, near.shape) * rng.choice([1, 12, 40], (len(near), 1))
        far = rng.integers(0, 300, (4, 2))
        every = np.concatenate((near, np.concatenate((far, far + 50), axis=1))).astype(np.float32)
        every[:, 2:] = np.maximum(every[:, 2:], every[:, :2] + 1)
        scores = (rng.integers(1, 10_000, len(every)) / 10_000).astype(np.float32)
        found[position] = (every, scores, rng.integers(0, 4 if rng.random() < 0.2 else 3, len(every)))
    return DetectionData("random", "val", CLASSES, [1, 2, 3, 4], records, []), found
