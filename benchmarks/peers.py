"""Train our model and peers for the same minutes on the same data, and score all of them with the same evaluator.

    python benchmarks/peers.py DATA [--peers yolo26n] [--ours auto] [--minutes 24] [--image-size 320]
        [--threads 2] [--batch-size 8] [--seeds 0] [--environment ~/.cache/nextdetr-peers] [--output DIR] [--write]

Peers are installed once, into a separate environment. All models train from random weights with their own defaults; for
ours, ``auto`` lets the recipe choose the model, too. Files, splits, image size, threads and minutes of training are the
same, one model after the other. ``--batch-size`` is for the peers; the recipe chooses ours. All detections go through
COCO results into our evaluator: AP on val over the minutes, and the best weights once on test (or on val if there is
none). Finished runs are reported and not trained again. ``--extra NAME=RUN`` adds one of our finished runs. With
several ``--seeds``, all models train with the first, then with the next; means and standard errors are reported, too.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from environments import environment, surroundings
from nextdetr.data.records import DetectionData
from nextdetr.weights.checkpoint import read_metrics
from nextdetr.weights.tensorfile import read_metadata
from peer_data import read_splits, score_predictions, write_yolo
from results import claim, machine, plot_curves, with_seeds, write_result

Curve = list[tuple[float, float]]  # minutes, AP on val
RUNNER = Path(__file__).parent / "peer_ultralytics.py"


def run_peer(name: str, options: argparse.Namespace, splits: dict[str, DetectionData], folder: Path) -> dict[str, Any]:
    """Train and predict, unless already done; return curve and score."""
    python = environment(Path(options.environment), "ultralytics", ["ultralytics"])
    folder.mkdir(parents=True, exist_ok=True)
    final = "test" if "test" in splits else "val"
    if not (folder / f"predictions-{final}-best.json").is_file():
        data = write_yolo(splits, folder / "data")
        images = {
            split: {index: str(record.path.resolve()) for index, record in enumerate(splits[split].records)}
            for split in ("val", *(("test",) if final == "test" else ()))
        }
        job = {
            "model": f"{name}.yaml", "data": str(data), "folder": str(folder.resolve()), "minutes": options.minutes,
            "image_size": options.image_size, "batch_size": options.batch_size, "threads": options.threads,
            "seed": options.seed, "workers": 1, "snapshots": options.snapshots, "images": images,
        }  # fmt: skip
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        with (folder / "log.txt").open("w", encoding="utf-8") as log:
            subprocess.run(
                [str(python), str(RUNNER), str(folder / "job.json")], check=True, stdout=log, stderr=log, cwd=folder,
                env=surroundings(options.threads) | {"YOLO_CONFIG_DIR": str(folder.resolve())},
            )  # fmt: skip
    noted = json.loads((folder / "times.json").read_text(encoding="utf-8"))
    curve = []
    for epoch, seconds in noted["seconds"].items():
        path = folder / f"predictions-val-{epoch}.json"
        if path.is_file():
            curve.append((seconds / 60, score_predictions(path, splits["val"]).metrics["AP"] or 0.0))
    best = {split: score_predictions(folder / f"predictions-{split}-best.json", splits[split]) for split in {"val", final}}
    return {
        "curve": curve, "epochs": len(noted["seconds"]), "val": best["val"].metrics, "final": best[final].metrics,
        "version": f"ultralytics {noted['version']}",
    }  # fmt: skip


def run_ours(name: str, options: argparse.Namespace, splits: dict[str, DetectionData], folder: Path) -> dict[str, Any]:
    """Train, unless already done; return curve and score."""
    command = [sys.executable, "-m", "nextdetr"]
    environ = surroundings(options.threads) | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    if not (folder / "best.safetensors").is_file():
        settings = [
            "--data", options.data, "--minutes", str(options.minutes), "--image-size", str(options.image_size), "--seed",
            str(options.seed), "--output", str(folder), *([] if name == "auto" else ["--model", name]),
            *options.train_options.split(),
        ]  # fmt: skip
        subprocess.run([*command, "train", *settings], check=True, env=environ)
    return report_ours(folder, options, splits, command, environ)


def report_ours(
    folder: Path, options: argparse.Namespace, splits: dict[str, DetectionData], command: list[str], environ: dict[str, str]
) -> dict[str, Any]:
    """Score the best weights of a finished run, once, and read its curve."""
    final = "test" if "test" in splits else "val"
    file = folder / f"{final}.json"
    if not file.is_file():
        arguments = ["val", str(folder / "best.safetensors"), "--data", options.data, "--split", final, "--json"]
        done = subprocess.run([*command, *arguments], check=True, stdout=subprocess.PIPE, env=environ)
        file.write_bytes(done.stdout)
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    scored = [row for row in rows if row["AP"]]
    chosen = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    kept = read_metrics(read_metadata(folder / "best.safetensors"))  # with few images of val not those of the highest AP
    return {
        "curve": [(float(row["seconds"]) / 60, float(row["AP"])) for row in scored], "epochs": len(rows),
        "val": {"AP": kept["AP"], "AP50": kept["AP50"]},
        "final": json.loads(file.read_text(encoding="utf-8"))["metrics"], "version": str(chosen["model"]),
    }  # fmt: skip


def report(results: dict[int, dict[str, dict[str, Any]]], options: argparse.Namespace, final: str) -> None:
    """Print the table and, on request, write it with the plot."""
    tag, seeds = with_seeds(f"peers-{Path(options.data).stem}", list(results), (0,)), [str(seed) for seed in results]
    curves = {
        name if len(seeds) == 1 else f"{name}, seed {seed}": result["curve"]
        for seed, found in results.items()
        for name, result in found.items()
    }
    picture = plot_curves(tag, curves, write=options.write, labels=("minutes of training", "AP on val"))
    lines = [
        f"# {Path(options.data).stem}, {options.minutes:g} minutes each",
        "",
        f"`python benchmarks/peers.py DATA --minutes {options.minutes:g} --image-size {options.image_size} --threads "
        f"{options.threads} --batch-size {options.batch_size} --seeds {' '.join(seeds)}"
        + (f' --train-options "{options.train_options}"' if options.train_options else "")
        + f"`. Random weights, one run for each seed. {machine()}",
        "",
        f"| | version or model | seed | epochs | val AP | val AP50 | {final} AP | {final} AP50 | {final} AP_small |",
        "|---|---|---|---|---|---|---|---|---|",
        *rows(results),
        *(["", f"![AP on val over the minutes]({picture.name})"] if picture else []),
    ]
    write_result(tag, lines, write=options.write)


def rows(results: dict[int, dict[str, dict[str, Any]]]) -> list[str]:
    """Return a row of the table for each model and seed; for several seeds also the mean ± its standard error."""
    table = []
    for name in next(iter(results.values())):
        found = [(seed, by_name[name]) for seed, by_name in results.items() if name in by_name]
        scores = [numbers(result) for _, result in found]
        for (seed, result), values in zip(found, scores, strict=True):
            cells = " | ".join("-" if value is None else f"{value:.4f}" for value in values)
            table.append(f"| {name} | {result['version']} | {seed} | {result['epochs']} | {cells} |")
        if len(found) > 1:
            cells = " | ".join("-" if None in values else spread(values) for values in zip(*scores, strict=True))
            table.append(f"| {name} | mean of {len(found)} | | | {cells} |")
    return table


def numbers(result: dict[str, Any]) -> list[float | None]:
    """Return the scores of a row: AP and AP50 on val, then AP, AP50 and AP_small on the final split."""
    return [result["val"]["AP"], result["val"]["AP50"], *(result["final"][key] for key in ("AP", "AP50", "AP_small"))]


def spread(values: Sequence[float]) -> str:
    """Return a mean and its standard error over seeds."""
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values) / math.sqrt(len(values)):.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--peers", nargs="*", default=["yolo26n"])
    parser.add_argument("--ours", nargs="*", default=["auto"], help="model names; auto: chosen by the recipe")
    parser.add_argument("--extra", nargs="*", default=[], metavar="NAME=RUN", help="our finished runs to add")
    parser.add_argument("--minutes", type=float, default=24)
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=8, help="of the peers")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--snapshots", type=int, default=12, help="most checkpoints of a peer to score for its curve")
    parser.add_argument("--train-options", default="", help="further options of nextdetr train, in one string")
    parser.add_argument("--environment", default="~/.cache/nextdetr-peers")
    parser.add_argument("--output", default="runs/benchmark-peers")
    parser.add_argument("--write", action="store_true", help="write the dated result file and the plot")
    options = parser.parse_args()
    splits, output = read_splits(options.data), Path(options.output)
    if options.extra and len(options.seeds) > 1:
        parser.error("--extra adds runs of one seed; pass only that seed")
    shared = ("minutes", "image_size", "batch_size", "threads", "train_options")
    settings = {name: getattr(options, name) for name in shared} | {"data": str(Path(options.data).resolve())}
    claim(output, settings | {"seed": options.seeds[0] if len(options.seeds) == 1 else None})  # several have a folder each
    results = {}
    for seed in options.seeds:
        given = argparse.Namespace(**vars(options), seed=seed)
        results[seed] = run_seed(given, splits, output if len(options.seeds) == 1 else output / f"seed-{seed}")
    report(results, options, "test" if "test" in splits else "val")


def run_seed(options: argparse.Namespace, splits: dict[str, DetectionData], output: Path) -> dict[str, dict[str, Any]]:
    """Train and score all models with one seed."""
    results = {}
    for name in options.ours:
        result = run_ours(name, options, splits, output / name)
        results[result["version"] if name == "auto" else name] = result
    command = [sys.executable, "-m", "nextdetr"]
    environ = surroundings(options.threads) | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    for extra in options.extra:
        name, _, folder = extra.partition("=")
        results[name] = report_ours(Path(folder), options, splits, command, environ)
    for name in options.peers:
        results[name] = run_peer(name, options, splits, output / name)
    return results


if __name__ == "__main__":
    main()
