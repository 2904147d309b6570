"""A tiny data set and a tiny model, and ultralytics' settings in a folder of the tests."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

# Before ultralytics is imported: settings, downloads and fonts stay out of the user's folders, and nothing is fetched.
FOLDER = tempfile.mkdtemp(prefix="ultralytics-")
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
os.environ["YOLO_CONFIG_DIR"] = FOLDER
os.environ["YOLO_OFFLINE"] = "true"
os.environ["YOLO_AUTOINSTALL"] = "false"

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from ultralytics import settings

torch.set_num_threads(1)
# What is installed beside the tests is none of their business: MLflow would keep a database in the working folder.
settings.update(dict.fromkeys(("mlflow", "wandb", "tensorboard", "raytune"), False))
os.chdir(FOLDER)
CLASSES = {0: "square", 1: "bar"}
#: The recipe's head in small, on the recipe's backbone: the same kinds of rows, and the same way of counting maps.
TINY = {
    "nc": 2,
    "scales": {"l": [1.0, 1.0, 1024]},
    "backbone": [[-1, 1, "convnextv2_atto", []]],
    "head": [
        [-1, 1, "Conv", [32, 1, 1, "None", 1, 1, False]],
        [-1, 1, "AIFI", [64, 4]],
        [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
        [3, 1, "Conv", [32, 1, 1]],
        [[-2, -1], 1, "Concat", [1]],
        [-1, 2, "RepC3", [32]],
        [[10, 6], 1, "RTDETRDecoder", ["nc", 32, 20, 2, 4, 2, 64]],
    ],
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of dark squares and bright bars for each split, as a YOLO data set."""
    root = tmp_path_factory.mktemp("shapes")
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        images, labels = root / "images" / split, root / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for number in range(4):
            pixels = generator.integers(100, 140, (64, 64, 3), dtype=np.uint8)
            lines = []
            for label, (width, height) in enumerate(((16, 16), (32, 8))):
                x, y = int(generator.integers(0, 64 - width)), int(generator.integers(0, 64 - height))
                pixels[y : y + height, x : x + width] = 20 if label == 0 else 230
                lines.append(f"{label} {(x + width / 2) / 64} {(y + height / 2) / 64} {width / 64} {height / 64}")
            Image.fromarray(pixels).save(images / f"{number}.png")
            (labels / f"{number}.txt").write_text("\n".join(lines) + "\n")
    file = root / "data.yaml"
    file.write_text(yaml.safe_dump({"path": str(root), "train": "images/train", "val": "images/val", "names": CLASSES}))
    return file


def gap(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the largest difference of rows [Q, D] from the nearest of the others: queries of nearly equal scores may swap.

    Take images with no more tokens than queries, or another one may be selected, which changes them all.
    """
    gaps = (first[:, None] - second[None]).abs().amax(-1)
    return max(float(gaps.min(dim=axis).values.max()) for axis in (0, 1))


def fresh(code: str) -> list[str]:
    """Return the command that runs code in a new interpreter of this environment."""
    return [sys.executable, "-c", code]
