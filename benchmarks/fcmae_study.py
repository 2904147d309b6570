"""Does pre-training on the same images, without labels, help? Detectors from random weights and after FCMAE, few labels.

    python benchmarks/fcmae_study.py DATA [--pretrain-minutes 10 | --pretrain-epochs 58] [--steps 120 | --minutes 4]
        [--learning-rate 4e-4] [--whole-minutes 24] [--fractions 0.1 0.25 0.5 1] [--second-seed 0.25 0.5]
        [--settings random FCMAE] [--weights FILE] [--reset-grn] [--test] [--write]

DATA is a Pascal VOC folder with the splits train, val and test. The backbone is pre-trained once, on the images of
``train``. Then, for each fraction of its labels and each entry of SETTINGS, a detector is trained for the same number of
steps (which other work on the machine does not affect) or the same minutes, and scored on ``val``. Fractions in
``--second-seed`` are run again with another seed. The labelled images of a fraction are the first ones of one shuffle, so
that larger fractions contain smaller ones. Finally, runs with all labels for ``--whole-minutes`` in total, including
pre-training, from random weights and after FCMAE. That makes 14 runs, not counting the pre-training.

``--weights`` uses the file of a backbone or detector instead of pre-training. The file of a detector trained with all
labels gives an upper bound for any pre-training in these steps. ``--reset-grn`` sets GRN to zero, as in random weights,
before fine-tuning.

``--test`` scores the best weights of each run on ``test``, once. Finished runs are not repeated and stopped ones are
resumed, so the script can be stopped and started again. A folder with runs of other settings is refused.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
import shlex
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

import nextdetr
from nextdetr import Detector
from results import claim, machine, plot_curves, write_result

#: Settings of the fine-tuning, by name; ``None`` starts from random weights.
SETTINGS: dict[str, dict[str, Any] | None] = {
    "random": None,
    "FCMAE": {"backbone_rate_factor": 1.0},
    "FCMAE, layer decay 0.8": {"backbone_rate_factor": 1.0, "layer_decay": 0.8},
    "FCMAE, backbone at a tenth of the rate": {"backbone_rate_factor": 0.1},
}
#: Settings that the recipe would choose, fixed here so that all runs have the same.
FIXED: dict[str, Any] = {
    "backbone_rate_factor": 1.0, "layer_decay": 1.0, "freeze_backbone_epochs": 0, "batch_size": 8, "auto_turn": False,
    "optimizer": "adamw",
}  # fmt: skip

#: Options that may differ between the runs of one folder.
VARIED = ("fractions", "second_seed", "settings", "output", "test", "write", "result")


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


def pretraining(options: argparse.Namespace) -> tuple[str, float]:
    """Return the unit and value of the pre-training's length."""
    if options.pretrain_epochs is not None:
        return "epochs", options.pretrain_epochs
    return "minutes", options.pretrain_minutes


def pretrained(options: argparse.Namespace, folder: Path) -> Path:
    """Pre-train, unless already done or weights are given; return the backbone's weights."""
    if options.weights is not None:
        return Path(options.weights)
    unit, number = pretraining(options)
    length: dict[str, Any] = {unit: number}
    run = folder / (f"pretrain-{number:g}" + ("-epochs" if unit == "epochs" else ""))
    weights = run / "backbone.safetensors"
    if not (run / "done.json").is_file():
        if (run / "last.ckpt").is_file():
            result = nextdetr.pretrain(resume=run)
        else:
            given = {"decoder_width": options.pretrain_decoder_width, "crop_min": options.pretrain_crop_min}
            length.update({name: value for name, value in given.items() if value is not None})
            result = nextdetr.pretrain(
                options.data, learning_rate=options.pretrain_rate, batch_size=options.pretrain_batch, output=run, **length
            )
        (run / "done.json").write_text(json.dumps(result.to_json()), encoding="utf-8")
    return weights


def without_grn(weights: Path, folder: Path) -> Path:
    """Write a copy of a backbone's weights with GRN at its initial value, zero; return its path."""
    path = folder / "backbone-grn-zero.safetensors"
    with safe_open(weights, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  safe_open is not a mapping
        metadata = file.metadata()
    reset = {name: torch.zeros_like(tensor) if ".grn." in name else tensor for name, tensor in tensors.items()}
    save_file(reset, path, metadata)
    return path


def budget(options: argparse.Namespace, images: int) -> dict[str, float]:
    """Minutes, or the number of epochs closest to the steps; the last batch of an epoch is filled up."""
    if options.minutes is not None:
        return {"minutes": options.minutes}
    return {"epochs": max(1, round(options.steps / math.ceil(images / FIXED["batch_size"])))}


def fine_tune(options: argparse.Namespace, data: Path, weights: Path | None, changes: dict[str, Any], run: Path) -> float:
    """Train, unless already done; return the best AP on val."""
    done = run / "done.json"
    if not done.is_file():
        detector = Detector(options.model) if weights is None else Detector(options.model, backbone_weights=weights)
        if (run / "last.ckpt").is_file():
            result = detector.train(resume=run)
        else:
            rate = {} if options.learning_rate is None else {"learning_rate": options.learning_rate}
            given = {**FIXED, "image_size": options.image_size, **rate, **changes}
            result = detector.train(data=data, output=run, val_every=None, **given)
        done.write_text(json.dumps(result.to_json()), encoding="utf-8")
    best: float = json.loads(done.read_text(encoding="utf-8"))["best"]["metrics"]["AP"]
    return best


def score_test(data: Path, run: Path) -> float:
    """AP of the run's best weights on test; scored once and stored."""
    kept = run / "test.json"
    if not kept.is_file():
        result = Detector(run / "best.safetensors").val(data=data, split="test", quiet=True)
        kept.write_text(json.dumps(result.metrics), encoding="utf-8")
    return float(json.loads(kept.read_text(encoding="utf-8"))["AP"])


def history(run: Path) -> list[dict[str, str]]:
    """Rows of metrics.csv, one per epoch."""
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def learning_curves(options: argparse.Namespace, folder: Path) -> dict[str, list[tuple[float, float]]]:
    """AP on val over the steps of each run."""
    return {
        f"{start_of(options, name)}, {100 * fraction:g} % of the labels, seed {seed}": [
            (float(row["step"]), float(row["AP"])) for row in history(run_of(folder, fraction, seed, name)) if row["AP"]
        ]
        for fraction, seed, name in plan(options)
    }


def run_of(folder: Path, fraction: float, seed: int, name: str) -> Path:
    return folder / f"{100 * fraction:g}-{list(SETTINGS).index(name)}-seed{seed}"


def start_of(options: argparse.Namespace, name: str) -> str:
    """Name of a setting in the table and the plot."""
    weights = "FCMAE" if options.weights is None else "the given weights"
    return name.replace("FCMAE", weights + (", GRN set to zero" if options.reset_grn else ""))


def plan(options: argparse.Namespace) -> Iterator[tuple[float, int, str]]:
    """Fraction of the labels, seed and setting of each run, by seed."""
    for seed, fractions in ((0, options.fractions), (1, options.second_seed)):
        for fraction in fractions:
            for name in options.settings:
                yield fraction, seed, name


def study(options: argparse.Namespace, folder: Path) -> tuple[list[str], dict[str, dict[float, list[float]]]]:
    """Rows of the table, and the scores by setting and percentage of the labels."""
    weights = None if options.settings == ["random"] else pretrained(options, folder)
    if options.reset_grn and weights is not None:
        weights = without_grn(weights, folder)
    rows: list[str] = []
    scores: dict[str, dict[float, list[float]]] = {name: {} for name in options.settings}

    def one(run: Path, fraction: float, seed: int, name: str, given: dict[str, float], shown: str) -> float:
        data, count = subset(Path(options.data), fraction, folder)
        changes = SETTINGS[name]
        given = given or budget(options, count)
        val = fine_tune(
            options, data, None if changes is None else weights, {**(changes or {}), **given, "seed": seed}, run
        )
        test = score_test(data, run) if options.test else None
        last = "-" if test is None else f"{test:.4f}"
        start = f"{start_of(options, name)}{shown}"
        rows.append(f"| {100 * fraction:g} % ({count}) | {seed} | {start} | {len(history(run))} | {val:.4f} | {last} |")
        print(rows[-1], flush=True)
        return val if test is None else test

    for fraction, seed, name in plan(options):
        run = run_of(folder, fraction, seed, name)
        scores[name].setdefault(100 * fraction, []).append(one(run, fraction, seed, name, {}, ""))
    size = options.whole_image_size or options.image_size
    for name in options.settings if options.whole_minutes else ():
        left = options.whole_minutes - (0 if SETTINGS[name] is None else options.pretrain_minutes)
        run = folder / f"whole-{list(SETTINGS).index(name)}"
        one(run, 1.0, 0, name, {"minutes": left, "image_size": size}, f", {left:g} minutes at {size} px")
    return rows, scores


def options_given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--model", default="nextdetr-atto")
    parser.add_argument("--fractions", type=float, nargs="*", default=[0.1, 0.25, 0.5, 1])
    parser.add_argument("--second-seed", type=float, nargs="*", default=[0.25], help="fractions to run with a second seed")
    parser.add_argument("--settings", nargs="+", default=["random", "FCMAE"], choices=list(SETTINGS))
    parser.add_argument("--pretrain-minutes", type=float, default=10)
    parser.add_argument(
        "--pretrain-epochs", type=int, help="instead of minutes; other work on the machine does not affect it"
    )
    parser.add_argument("--pretrain-rate", type=float, default=None, help="peak learning rate (default: pretrain's)")
    parser.add_argument("--pretrain-batch", type=int, default=None, help="its batch size (default: pretrain's)")
    parser.add_argument("--pretrain-decoder-width", type=int, default=None, help="decoder's width (default: pretrain's)")
    parser.add_argument("--pretrain-crop-min", type=float, default=None, help="its smallest crop (default: pretrain's)")
    parser.add_argument("--weights", default=None, help="start from this file instead of pre-training")
    parser.add_argument("--reset-grn", action="store_true", help="set GRN to zero before fine-tuning")
    parser.add_argument("--steps", type=int, default=120, help="length of fine-tuning")
    parser.add_argument("--minutes", type=float, default=None, help="length of fine-tuning in minutes instead")
    parser.add_argument("--learning-rate", type=float, default=None, help="its learning rate (default: the recipe's)")
    parser.add_argument(
        "--whole-minutes", type=float, default=24, help="length of the last runs, with pre-training; 0: none"
    )
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--whole-image-size", type=int, default=320, help="of the last runs; 0: the same as the others")
    parser.add_argument("--output", default="runs/benchmark-fcmae")
    parser.add_argument("--test", action="store_true", help="score the best weights of each run on test, once")
    parser.add_argument("--write", action="store_true", help="write the dated result file")
    parser.add_argument("--result", default="fcmae-study", help="name of the result file")
    options = parser.parse_args()
    if options.pretrain_epochs is not None and options.whole_minutes:
        parser.error("--whole-minutes includes the minutes of pre-training; pass --pretrain-minutes, or --whole-minutes 0")
    return options


def main() -> None:
    options = options_given()
    folder = Path(options.output)
    common = {name: value for name, value in vars(options).items() if name not in VARIED}
    claim(folder, {**common, "data": str(Path(options.data).resolve())})
    rows, scores = study(options, folder)
    if len(options.fractions) > 1:
        split = "test" if options.test else "val"
        labels = ("labels of the training images, %", f"AP on {split}, mean of the seeds")
        curves = {
            name: [(percent, statistics.mean(values)) for percent, values in sorted(of_name.items())]
            for name, of_name in scores.items()
        }
    else:
        labels, curves = ("steps of fine-tuning", "AP on val"), learning_curves(options, folder)
    picture = plot_curves(options.result, curves, labels=labels, write=options.write and bool(curves))
    lines = [
        f"# FCMAE and few labels, {options.model}",
        "",
        f"`python benchmarks/fcmae_study.py {shlex.join(sys.argv[1:])}`. {machine()}",
        "",
        "AP on `val` is the best of the run, so it is too high, for all settings alike"
        + ("; `test` was scored once, with those weights." if options.test else "; `test` is not scored."),
        "",
        "| labels (images) | seed | start and fine-tuning | epochs | val AP | test AP |",
        "|---|---|---|---|---|---|",
        *rows,
        *(["", f"![{labels[1]} over {labels[0]}]({picture.name})"] if picture else []),
    ]
    write_result(options.result, lines, write=options.write)


if __name__ == "__main__":
    main()
