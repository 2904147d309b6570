"""Few labelled images: what each kind of augmentation is worth after equal steps, on several seeds.

    python benchmarks/few_images.py DATA [--images 20] [--epochs 240] [--model nextdetr-zepto] [--image-size 160]
        [--seeds 0 1 2] [--variants plain mixed turned auto both] [--threads 2] [--output DIR] [--write]

The labelled images are the first ones of a shuffle of train by the seed, so that every seed has other images. ``val`` is
whole, since it compares methods here; ``test`` is not used. All runs start from random weights and take the same number
of steps of 8 images. Finished runs are not repeated, and stopped ones are resumed.

plain: the recipe's defaults, without images that combine others and without turned ones. mixed: mosaic and copy-paste, 0.5
each. turned: quarter turns and vertical flips, for pictures without up and down. auto: the same from a fifth of the run,
if the detector then finds turned objects (``--auto-turn``). both: mixed and turned.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import torch

from few_labels import BATCH, cut
from nextdetr import Detector
from nextdetr.files import write_text_atomic
from peer_data import read_splits, write_yolo
from results import claim, machine, with_seeds, write_result
from training import result_file, shown, train_once

MIXED, TURNED = {"mosaic": 0.5, "copy_paste": 0.5}, {"flip_vertical": True, "rotate90": True}
PLAIN = {"mosaic": 0.0, "copy_paste": 0.0, "auto_turn": False}
VARIANTS: dict[str, dict[str, float]] = {
    "plain": PLAIN, "mixed": {**PLAIN, **MIXED}, "turned": {**PLAIN, **TURNED}, "auto": {**PLAIN, "auto_turn": True},
    "both": {**PLAIN, **MIXED, **TURNED},
}  # fmt: skip


def write_data(options: argparse.Namespace, seed: int) -> Path:
    """Write a data set with few images in train and the whole val, unless it exists; return its ``data.yaml``."""
    home = Path(options.output) / f"data-seed{seed}"
    if not (home / "data.yaml").is_file():
        splits = read_splits(options.data)
        splits.pop("test", None)
        splits["train"] = cut(splits["train"], options.images / len(splits["train"].records), seed)
        write_yolo(splits, home)
    return home / "data.yaml"


def train(options: argparse.Namespace, variant: str, seed: int) -> dict[str, Any]:
    """Train, unless already done; return the result with the AP of the last weights as ``last``."""
    folder = Path(options.output) / f"{variant}-seed{seed}"
    settings: dict[str, Any] = {
        "data": write_data(options, seed), "epochs": options.epochs, "batch_size": BATCH, "seed": seed,
        "image_size": options.image_size, "val_every": math.ceil(options.epochs / 8), "output": folder,
        **VARIANTS[variant],
    }  # fmt: skip
    found = train_once(options.model, settings)
    if "last" not in found:
        found["last"] = Detector(folder / "last.safetensors").val(data=settings["data"], quiet=True).metrics["AP"]
        write_text_atomic(result_file(folder), json.dumps(found))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=240)
    parser.add_argument("--model", default="nextdetr-zepto")
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", default="runs/benchmark-few-images")
    parser.add_argument("--write", action="store_true", help="write the dated result file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shared = ("images", "epochs", "model", "image_size", "threads")
    settings = {name: getattr(options, name) for name in shared}
    claim(Path(options.output), {**settings, "data": str(Path(options.data).resolve())})
    found: dict[str, list[dict[str, Any]]] = {variant: [] for variant in options.variants}
    for seed in options.seeds:  # seed by seed, so that a stopped study has all variants of the first seeds
        for variant in options.variants:
            found[variant].append(train(options, variant, seed))
    steps = options.epochs * math.ceil(options.images / BATCH)
    lines = [
        f"# {options.images} labelled images of {Path(options.data).stem}: kinds of augmentation after {steps} steps",
        "",
        f"`python benchmarks/few_images.py DATA --images {options.images} --epochs {options.epochs} "
        f"--model {options.model} --image-size {options.image_size} --seeds {' '.join(map(str, options.seeds))} "
        f"--variants {' '.join(options.variants)}`. "
        f"Random weights, equal steps. {machine()}",
        "",
        "| | AP on the whole `val` at the end, mean (seeds) | the best epoch |",
        "|---|---|---|",
    ]
    for variant, results in found.items():
        last = [result["last"] for result in results]
        best = statistics.mean(result["best"]["metrics"]["AP"] for result in results)
        lines.append(f"| {variant} | {shown(last, 3)} | {best:.3f} |")
    write_result(with_seeds(f"few-images-{Path(options.data).stem}", options.seeds), lines, write=options.write)


if __name__ == "__main__":
    main()
