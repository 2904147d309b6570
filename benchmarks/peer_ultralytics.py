"""Runs in the peer's own environment: trains a YOLO for some minutes, then writes the detections of its weights.

    python peer_ultralytics.py JOB.json

Written against the peer's public interface. This file imports nothing of NextDETR, and no other file imports the peer.
JOB has: model, data, folder, minutes, image_size, batch_size, threads, seed, images ({split: {id: path}}), snapshots.
Output: ``times.json`` (epoch -> seconds since the start of training) and ``predictions-SPLIT-NAME.json``, COCO results
with boxes xywh in pixels and category ids as class indices.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from ultralytics import YOLO, __version__, settings

LOGGERS = ("mlflow", "tensorboard", "wandb", "comet", "clearml", "dvc", "neptune")


def train(job: dict[str, Any], folder: Path) -> dict[int, float]:
    """Train from random weights with the peer's defaults; return the seconds at the end of each epoch."""
    times: dict[int, float] = {}
    started = time.perf_counter()

    def use_threads(trainer: Any) -> None:
        torch.set_num_threads(job["threads"])  # the peer sets its own number when it chooses the device

    def note_time(trainer: Any) -> None:
        times[int(trainer.epoch)] = time.perf_counter() - started
        (folder / "times.json").write_text(json.dumps({"version": __version__, "seconds": times}))

    model = YOLO(job["model"])
    model.add_callback("on_train_start", use_threads)
    model.add_callback("on_model_save", note_time)
    model.train(
        data=job["data"], time=job["minutes"] / 60, imgsz=job["image_size"], batch=job["batch_size"], device="cpu",
        seed=job["seed"], pretrained=False, amp=False, plots=False, save_period=1, workers=job["workers"], cache="ram",
        project=str(folder), name="train", exist_ok=True,
    )  # fmt: skip
    return times


def predict(weights: Path, images: dict[str, str], job: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the COCO results of all images."""
    model = YOLO(str(weights))
    torch.set_num_threads(job["threads"])
    results = []
    for image_id, path in images.items():
        (found,) = model.predict(
            path, imgsz=job["image_size"], conf=0.001, max_det=300, device="cpu", verbose=False, save=False
        )
        torch.set_num_threads(job["threads"])
        boxes = found.boxes
        for (x1, y1, x2, y2), score, label in zip(
            boxes.xyxy.tolist(), boxes.conf.tolist(), boxes.cls.tolist(), strict=True
        ):
            results.append(
                {"image_id": int(image_id), "category_id": int(label), "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
            )
    return results


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(job["folder"])
    torch.set_num_threads(job["threads"])
    # Installed experiment trackers would log by themselves, which is not part of training. Settings are of this folder.
    settings.update({name: False for name in LOGGERS if name in settings})
    times = train(job, folder)
    weights = folder / "train" / "weights"
    epochs = sorted(epoch for epoch in times if (weights / f"epoch{epoch}.pt").is_file())
    step = max(1, -(-len(epochs) // job["snapshots"]))
    for epoch in epochs[::-step]:
        results = predict(weights / f"epoch{epoch}.pt", job["images"]["val"], job)
        (folder / f"predictions-val-{epoch}.json").write_text(json.dumps(results))
    for split, images in job["images"].items():
        results = predict(weights / "best.pt", images, job)
        (folder / f"predictions-{split}-best.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
