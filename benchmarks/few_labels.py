"""Few labels, many images: the gain of each method that learns without labels, by fraction of labels.

    python benchmarks/few_labels.py DATA [--rows random turned pretrained unlabelled together yolo26n]
        [--fractions 0.05 0.1 0.25 1] [--seeds 0 1 2] [--minutes 12 | --steps 600] [--model nextdetr-atto]
        [--image-size 256] [--block MINUTES] [--output DIR] [--test] [--write]

DATA has the splits train and val (and test, for ``--test``). The labelled images of a fraction are the first ones of one
shuffle by the seed. ``val`` is reduced in the same way, as a user's would be. The other images of train are unlabelled.

- random: labels only, from random weights, without ``--auto-turn``.
- turned: the same with ``--auto-turn``, as in the recipe: only below 100 labelled images.
- pretrained: ``pretrain --detector`` on all images of train for a third of the minutes, then the labels.
- unlabelled: ``train --unlabelled`` from random weights.
- together: all of it.
- yolo26n: the peer, from random weights, in a separate environment (see ``peers.py``); only with ``--minutes``.

``--minutes`` includes everything, also pre-training. ``--steps`` gives each run the same number of student steps
instead, without counting pre-training, which separates the method from its speed. If all images have labels,
``unlabelled`` and ``together`` train without unlabelled images. Finished runs are never repeated, stopped ones are
resumed, and ``state.json`` in the folder has the results so far. ``--block MINUTES`` stops the script after the run in
which that time has passed, so that a long study can be split. ``--test`` scores each run's best weights on ``test``,
once.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import nextdetr
from nextdetr import Detector
from nextdetr.data.records import DetectionData
from nextdetr.engine.recipe import FEW_IMAGES
from nextdetr.files import write_text_atomic
from peer_data import read_splits, write_yolo
from peers import run_peer
from results import FOLDER, machine, with_seeds, write_result

ROWS = ("random", "turned", "pretrained", "unlabelled", "together", "yolo26n")
PRETRAIN_SHARE = 1 / 3  # of the minutes
BATCH = 8  # with --steps, so that all rows use the same one


@dataclass(frozen=True, slots=True)
class Job:
    """One run of the study."""

    row: str
    fraction: float
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder, and its key in the state."""
        return f"{100 * self.fraction:g}-{self.row}-seed{self.seed}"


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """All runs, seed by seed, so that a study that ends early has all rows of the first seed."""
    for seed in options.seeds:
        for fraction in options.fractions:
            for row in options.rows:
                yield Job(row, fraction, seed)


def write_data(options: argparse.Namespace, job: Job, folder: Path) -> tuple[Path, Path, int]:
    """Write a data set of the labelled images, and a folder of links to the others, unless they exist.

    Returns:
        The data set, that folder, and the number of labelled images.
    """
    home = folder / "data" / f"{100 * job.fraction:g}-seed{job.seed}"
    listed, more = home / "data.yaml", home / "unlabelled"
    if not listed.is_file():
        splits = read_splits(options.data)
        for split in ("train", "val"):
            splits[split] = cut(splits[split], job.fraction, job.seed)
        more.mkdir(parents=True, exist_ok=True)
        labelled = {record.path for record in splits["train"].records}
        for index, record in enumerate(read_splits(options.data)["train"].records):
            link = more / f"{index:06d}{record.path.suffix}"
            if record.path not in labelled and not link.is_symlink():
                link.symlink_to(record.path.resolve())
        write_yolo(splits, home)
    content = yaml.safe_load(listed.read_text(encoding="utf-8"))
    count = sum(1 for _ in (home / content["train"]).iterdir())
    return listed, more, count


def cut(data: DetectionData, fraction: float, seed: int) -> DetectionData:
    """The first images of a shuffle; larger fractions contain smaller ones. At least two, so that one may have a box."""
    order = np.random.default_rng(seed).permutation(len(data.records))
    kept = sorted(order[: max(2, round(fraction * len(order)))].tolist())
    return replace(data, records=[data.records[index] for index in kept])


def length(options: argparse.Namespace, images: int, minutes: float) -> dict[str, Any]:
    """Minutes, or the number of epochs closest to the steps."""
    if options.steps is None:
        return {"minutes": minutes}
    return {"epochs": max(1, round(options.steps / math.ceil(images / BATCH))), "batch_size": BATCH}


def pretrained(options: argparse.Namespace, job: Job, folder: Path) -> tuple[Path, float]:
    """Pre-train backbone and head on all images of train, unless already done; return the file and its minutes.

    It uses no labels, so all fractions of a seed share it.
    """
    run, minutes = folder / f"pretrain-seed{job.seed}", PRETRAIN_SHARE * options.minutes
    done = run / "done.json"
    if not done.is_file():
        if (run / "last.ckpt").is_file():
            nextdetr.pretrain(resume=run)
        else:
            nextdetr.pretrain(
                options.data, model=options.model, detector=True, minutes=minutes, seed=job.seed, output=run
            )  # fmt: skip
        write_text_atomic(done, json.dumps({"minutes": minutes}))
    return run / "detector.safetensors", minutes


def train_ours(options: argparse.Namespace, job: Job, folder: Path) -> dict[str, Any]:
    """Train one of our rows, unless already done; return its scores."""
    data, more, count = write_data(options, job, folder)
    run = folder / job.name
    weights, spent = None, 0.0
    if job.row in ("pretrained", "together"):
        weights, spent = pretrained(options, job, folder)
    if (run / "last.ckpt").is_file():
        settings: dict[str, Any] = {"resume": run}
    else:
        settings = {
            "data": data, "image_size": options.image_size, "seed": job.seed, "output": run,
            "auto_turn": job.row in ("turned", "together") and count < FEW_IMAGES,
            **length(options, count, options.minutes - spent),
        }  # fmt: skip
        if job.row in ("unlabelled", "together") and any(more.iterdir()):
            settings["unlabelled"] = (str(more),)
    result = Detector(options.model, weights=weights).train(**settings)
    found = {"images": count, "val": result.best["metrics"], "epochs": result.epochs, "seconds": result.seconds}
    if options.test:
        found["test"] = Detector(run / "best.safetensors").val(data=data, split="test", quiet=True).metrics
    return found


def train_peer(options: argparse.Namespace, job: Job, folder: Path) -> dict[str, Any]:
    """Train the peer for the same minutes, and score its best weights on test if there is one."""
    data, _, count = write_data(options, job, folder)
    splits = read_splits(str(data))
    if not options.test:
        splits.pop("test", None)
    given = argparse.Namespace(**vars(options) | {"seed": job.seed, "snapshots": 1, "batch_size": BATCH})
    result = run_peer(job.row, given, splits, folder / job.name)
    scores = {"test": result["final"]} if options.test else {}
    return {"images": count, "val": result["val"], "epochs": result["epochs"], **scores}


def common(options: argparse.Namespace) -> dict[str, Any]:
    """Settings that all runs of a folder share."""
    names = ("model", "image_size", "minutes", "steps", "threads", "test")
    return {**{name: getattr(options, name) for name in names}, "data": str(Path(options.data).resolve())}


def read_state(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Read the results so far; refuse a folder of another study."""
    file, now = folder / "state.json", common(options)
    if not file.is_file():
        return {"settings": now, "runs": {}}
    state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    other = ", ".join(name for name, value in now.items() if state["settings"].get(name) != value)
    if other:
        raise SystemExit(f"{folder} holds a study with another {other}; choose another --output.")
    return state


def study(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run whatever is missing; return the state, which is written after each run."""
    state, started = read_state(options, folder), time.monotonic()
    for job in jobs(options):
        if job.name in state["runs"]:
            continue
        if options.block is not None and time.monotonic() - started > 60 * options.block:
            print(f"The block of {options.block:g} minutes is over; run the same command again to continue.", flush=True)
            break
        run = train_peer if job.row == "yolo26n" else train_ours
        state["runs"][job.name] = run(options, job, folder)
        write_text_atomic(folder / "state.json", json.dumps(state))
        print(f"{job.name}: AP on val {state['runs'][job.name]['val']['AP']}", flush=True)
    return state


def scores(options: argparse.Namespace, state: dict[str, Any], split: str) -> dict[str, dict[float, list[float]]]:
    """AP by row and fraction, one value per seed."""
    found: dict[str, dict[float, list[float]]] = {row: {} for row in options.rows}
    for job in jobs(options):
        run = state["runs"].get(job.name)
        if run is not None and run.get(split, {}).get("AP") is not None:
            found[job.row].setdefault(job.fraction, []).append(float(run[split]["AP"]))
    return found


def plot(options: argparse.Namespace, found: dict[str, dict[float, list[float]]], split: str, tag: str) -> Path | None:
    """Plot AP over the fraction of labels: mean and range of the seeds.

    A single fraction is not plotted.
    """
    if not options.write or len(options.fractions) < 2:
        return None
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for row, of_row in found.items():
        if not of_row:
            continue
        x = sorted(of_row)
        means = [statistics.mean(of_row[fraction]) for fraction in x]
        (line,) = axes.plot([100 * fraction for fraction in x], means, marker="o", label=row)
        low, high = ([extreme(of_row[fraction]) for fraction in x] for extreme in (min, max))
        axes.fill_between([100 * fraction for fraction in x], low, high, alpha=0.15, color=line.get_color())
    axes.set(xscale="log", xlabel="labels of the training images, %", ylabel=f"AP on {split}, mean and range of the seeds")
    axes.set_xticks([100 * fraction for fraction in options.fractions])
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.margins(y=0.1)
    axes.autoscale_view()
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{tag}.png"
    figure.savefig(path, dpi=120)
    return path


def report(options: argparse.Namespace, state: dict[str, Any]) -> None:
    """Print the tables and, on request, write them with the plot."""
    lines = [
        f"# Few labels, {Path(options.data).stem}, {options.model} at {options.image_size} px, "
        + (f"{options.minutes:g} minutes a run" if options.steps is None else f"{options.steps} steps a run"),
        "",
        f"`python benchmarks/few_labels.py {shlex.join(sys.argv[1:])}`. {machine()}",
    ]
    unit = f"{options.minutes:g}-minutes" if options.steps is None else f"{options.steps}-steps"
    tag = with_seeds(f"few-labels-{Path(options.data).stem}-{unit}", options.seeds)
    for split in ("val", *(["test"] if options.test else [])):
        found = scores(options, state, split)
        heads = "".join(f" {100 * fraction:g} % |" for fraction in options.fractions)
        lines += ["", f"AP on {split}, mean (each seed):", "", f"| row |{heads}", "|---|" + "---|" * len(options.fractions)]
        for row, of_row in found.items():
            cells = []
            for fraction in options.fractions:
                values = of_row.get(fraction, [])
                each = ", ".join(f"{value:.3f}" for value in values)
                cells.append(f"{statistics.mean(values):.4f} ({each})" if values else "-")
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
        picture = plot(options, found, split, f"{tag}-{split}")
        lines += ["", f"![AP on {split} over labels]({picture.name})"] if picture else []
    write_result(tag, lines, write=options.write)


def options_given() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--rows", nargs="+", default=None, choices=ROWS, help="default: all; with --steps, all of ours")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.05, 0.1, 0.25, 1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=12, help="of each run; with --steps, a third is pre-training")
    parser.add_argument("--steps", type=int, default=None, help="of the student, instead of minutes")
    parser.add_argument("--model", default="nextdetr-atto")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--block", type=float, default=None, help="start no further run after this many minutes")
    parser.add_argument("--environment", default="~/.cache/nextdetr-peers")
    parser.add_argument("--output", default="runs/benchmark-few-labels")
    parser.add_argument("--test", action="store_true", help="score the best weights of each run on test, once")
    parser.add_argument("--write", action="store_true", help="write the dated result file and the plots")
    options = parser.parse_args()
    ours = ROWS[:-1]
    options.rows = options.rows or (ROWS if options.steps is None else ours)
    if options.steps is not None and "yolo26n" in options.rows:
        parser.error("the peer's steps are not comparable: omit yolo26n, or use --minutes")
    return options


def main() -> None:
    options = options_given()
    torch.set_num_threads(options.threads)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    report(options, study(options, folder))


if __name__ == "__main__":
    main()
