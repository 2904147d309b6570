"""Small data sets and runs that several tests share."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TINY_MODEL = """
nc: 2
image_size: 64
backbone:
  - [-1, 1, convnextv2_atto, []]
head:
  - [-1, 1, Conv, [32, 1, 1]]
  - [3, 1, Conv, [32, 1, 1]]
  - [[6, 5], 1, RTDETRDecoder, [nc, 32, 20, 2, 4, 2, 64]]
"""


def tiny_model(folder: Path) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(TINY_MODEL)
    return path


def squares(folder: Path, images: int = 6, *, size: int = 96, empty: bool = True) -> Path:
    """A COCO folder of dark squares and bright bars on grey; the last image of each split has no box if ``empty``."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        entries, annotations = [], []
        (folder / "images" / split).mkdir(parents=True)
        for number in range(1, images + 1):
            pixels = generator.integers(100, 140, (size, size, 3), dtype=np.uint8)
            if not (empty and number == images):
                for label in range(2):
                    width, height = (24, 24) if label == 0 else (40, 12)
                    x, y = generator.integers(0, size - width), generator.integers(0, size - height)
                    pixels[y : y + height, x : x + width] = 20 if label == 0 else 230
                    annotations.append(
                        {"id": len(annotations) + 1, "image_id": number, "category_id": label + 1, "iscrowd": 0,
                         "bbox": [int(x), int(y), width, height], "area": width * height}
                    )  # fmt: skip
            Image.fromarray(pixels).save(folder / "images" / split / f"{number}.png")
            entries.append({"id": number, "file_name": f"{number}.png", "width": size, "height": size})
        categories = [{"id": 1, "name": "square"}, {"id": 2, "name": "bar"}]
        content = {"images": entries, "annotations": annotations, "categories": categories}
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


def stop_after(monkeypatch, task, steps: int) -> None:
    """Ask a ``Trainer`` or ``Pretrainer`` to stop, as Ctrl-C does, after this many of its steps."""
    step, count = task.step, 0

    def interrupted(self, *arguments):
        nonlocal count
        values = step(self, *arguments)
        count += 1
        if count == steps:
            signal.raise_signal(signal.SIGINT)
        return values

    monkeypatch.setattr(task, "step", interrupted)


def interrupt_training(settings: dict, steps: int, match: str | None = None) -> None:
    """Train with ``settings`` until stopped after this many steps; ``match`` is the expected message."""
    from nextdetr.config import TrainConfig
    from nextdetr.engine.train import Trainer, train
    from nextdetr.errors import Interrupted

    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, Trainer, steps)
        with pytest.raises(Interrupted, match=match):
            train(TrainConfig(**settings), quiet=True)
