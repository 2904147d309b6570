"""Does pre-training on the same images without labels pay? Detectors from random weights and after FCMAE, for few labels.

    python benchmarks/fcmae_study.py DATA [--fractions 0.25 1] [--seeds 0 1] [--pretrain-minutes 12]
        [--minutes 6 | --steps 300] [--settings random FCMAE] [--test] [--write]

DATA is a Pascal VOC folder with the splits train, val and test. The backbone is pre-trained once, on the images of
``train``. Then, for each fraction of its labels, each seed and each setting of SETTINGS, a detector is trained for the same
minutes, or the same steps, which do not depend on what else the machine does, and scored on ``val``. The labelled images of
a fraction are the first ones of one shuffle, so that a larger one holds a smaller. ``--test`` scores the best weights of
each run on ``test``, once. A run whose folder is complete is not repeated, so the script can be stopped and started again,
and further seeds added.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
import statistics
from pathlib import Path
from typing import Any

import nextdetr
from nextdetr import Detector
from results import machine, plot_curves, write_result

#: Settings of the fine-tuning, by name; ``None`` starts from random weights.
SETTINGS: dict[str, dict[str, Any] | None] = {
    "random": None,
    "FCMAE": {"backbone_rate_factor": 1.0},
    "FCMAE, layer decay 0.8": {"backbone_rate_factor": 1.0, "layer_decay": 0.8},
    "FCMAE, backbone at a tenth of the rate": {"backbone_rate_factor": 0.1},
}
#: What the recipe would choose otherwise, and must be the same in all of them.
FIXED: dict[str, Any] = {"backbone_rate_factor": 1.0, "layer_decay": 1.0, "freeze_backbone_epochs": 0, "batch_size": 8}


def subset(data: Path, fraction: float, folder: Path) -> tuple[Path, int]:
    """Write a data set YAML whose training split has a fraction of the labelled images; return it and their number."""
    names = (data / "ImageSets" / "Main" / "train.txt").read_text(encoding="utf-8").split()
    random.Random(0).shuffle(names)
    kept = names[: max(1, round(fraction * len(names)))]
    files = {path.stem: path.name for path in (data / "JPEGImages").iterdir()}
    tag = f"{100 * fraction:g}"
    (folder / f"train-{tag}.txt").write_text("".join(f"{files[name]}\n" for name in kept), encoding="utf-8")
    images, annotations = (json.dumps(str((data / name).resolve())) for name in ("JPEGImages", "Annotations"))
    lists = {"train": f"train-{tag}.txt"}
    for split in ("val", "test"):
        lists[split] = f"{split}.txt"
        others = (data / "ImageSets" / "Main" / f"{split}.txt").read_text(encoding="utf-8").split()
        (folder / lists[split]).write_text("".join(f"{files[name]}\n" for name in others), encoding="utf-8")
    splits = "".join(
        f"{split}: {{images: {images}, annotations: {annotations}, include: {json.dumps(str(folder.resolve() / name))}}}\n"
        for split, name in lists.items()
    )
    path = folder / f"data-{tag}.yaml"
    path.write_text(f"format: voc\nroot: .\n{splits}", encoding="utf-8")
    return path, len(kept)


def pretrained(options: argparse.Namespace, folder: Path) -> Path:
    """Pre-train unless it has been done; return the backbone's weights."""
    run = folder / f"pretrain-{options.pretrain_minutes:g}"
    weights = run / "backbone.safetensors"
    if not (run / "done.json").is_file():
        result = nextdetr.pretrain(
            options.data, minutes=options.pretrain_minutes, learning_rate=options.pretrain_rate, output=run
        )
        (run / "done.json").write_text(json.dumps(result.to_json()), encoding="utf-8")
    return weights


def budget(options: argparse.Namespace, images: int) -> dict[str, float]:
    """Minutes, or the whole epochs nearest to the steps: a last batch is filled, so that each has all its images."""
    if options.steps is None:
        return {"minutes": options.minutes}
    return {"epochs": max(1, round(options.steps / math.ceil(images / FIXED["batch_size"])))}


def fine_tune(options: argparse.Namespace, data: Path, weights: Path | None, changes: dict[str, Any], run: Path) -> float:
    """Train unless it has been done; return the best AP on val."""
    done = run / "done.json"
    if not done.is_file():
        detector = Detector(options.model) if weights is None else Detector(options.model, backbone_weights=weights)
        result = detector.train(
            data=data,
            image_size=options.image_size,
            output=run,
            val_every=None,
            **{**FIXED, **changes},
        )
        done.write_text(json.dumps(result.to_json()), encoding="utf-8")
    best: float = json.loads(done.read_text(encoding="utf-8"))["best"]["metrics"]["AP"]
    return best


def score_test(data: Path, run: Path) -> float:
    """AP of the run's best weights on test; scored once and kept."""
    kept = run / "test.json"
    if not kept.is_file():
        result = Detector(run / "best.safetensors").val(data=data, split="test", quiet=True)
        kept.write_text(json.dumps(result.metrics), encoding="utf-8")
    return float(json.loads(kept.read_text(encoding="utf-8"))["AP"])


def epochs(run: Path) -> int:
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return len(list(csv.DictReader(file)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--model", default="nextdetr-atto")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.25])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--pretrain-minutes", type=float, default=12)
    parser.add_argument("--pretrain-rate", type=float, default=None, help="peak rate (default: pretrain's own)")
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--steps", type=int, default=None, help="fine-tune for so many steps in place of minutes")
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--output", default="runs/benchmark-fcmae")
    parser.add_argument("--test", action="store_true", help="score the best weights of each run on test, once")
    parser.add_argument("--write", action="store_true", help="write the dated result file")
    options = parser.parse_args()
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    weights = None if options.settings == ["random"] else pretrained(options, folder)
    rows = []
    scores: dict[str, dict[float, list[float]]] = {name: {} for name in options.settings}
    for fraction in options.fractions:
        data, count = subset(Path(options.data), fraction, folder)
        for seed in options.seeds:
            for name in options.settings:
                changes = SETTINGS[name]
                run = folder / f"{100 * fraction:g}-{list(SETTINGS).index(name)}-seed{seed}"
                start = None if changes is None else weights
                score = fine_tune(options, data, start, {**(changes or {}), **budget(options, count), "seed": seed}, run)
                tested = score_test(data, run) if options.test else None
                scores[name].setdefault(100 * fraction, []).append(score if tested is None else tested)
                shown = "-" if tested is None else f"{tested:.4f}"
                rows.append(f"| {100 * fraction:g} % ({count}) | {seed} | {name} | {epochs(run)} | {score:.4f} | {shown} |")
                print(rows[-1], flush=True)
    split = "test" if options.test else "val"
    curves = {
        name: [(percent, statistics.mean(values)) for percent, values in of_name.items()]
        for name, of_name in scores.items()
    }
    labels = ("labels of the training images, %", f"AP on {split}, mean of the seeds")
    picture = plot_curves("fcmae-study", curves, write=options.write, labels=labels)
    lines = [
        f"# FCMAE and few labels, {options.model}",
        "",
        f"`python benchmarks/fcmae_study.py DATA --pretrain-minutes {options.pretrain_minutes:g} "
        f"{f'--steps {options.steps}' if options.steps else f'--minutes {options.minutes:g}'} "
        f"--image-size {options.image_size}`; pre-training rate "
        f"{options.pretrain_rate or 'by default'}. {machine()}",
        "",
        "AP on `val` is the best of the run, which therefore flatters all settings alike"
        + ("; `test` was scored once, with those weights." if options.test else "; `test` is not scored."),
        "",
        "| labels (images) | seed | start and fine-tuning | epochs | val AP | test AP |",
        "|---|---|---|---|---|---|",
        *rows,
        *(["", f"![AP on {split} over the share of labels]({picture.name})"] if picture else []),
    ]
    write_result("fcmae-study", lines, write=options.write)


if __name__ == "__main__":
    main()
