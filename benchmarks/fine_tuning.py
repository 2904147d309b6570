"""Does starting from a trained detector help? The same run from random weights and from a detector, in steps or minutes.

    python benchmarks/fine_tuning.py DATA --weights DETECTOR --model nextdetr-zepto --epochs 12 --image-size 224
        [--seeds 0 1 2] [--variant NAME KEY=VALUE ...] [--minutes 12] [--threads 2] [--write]

``random`` starts from random weights with the usual recipe, ``start`` from DETECTOR with the recipe for fine-tuning.
Each ``--variant`` is ``start`` with other settings of ``nextdetr train`` (``--variant gentle learning_rate=1e-4``), to
choose that recipe. Scores are on ``val``. The target: no start ends below random weights, and 90 % of the final AP from
random weights is reached in at most half of the run. Finished runs are not trained again; stopped ones are resumed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from nextdetr.engine.log import read_table
from results import claim, machine, write_result
from training import shown, train_once

SHARE = 0.9  # of the final AP from random weights


def train(options: argparse.Namespace, variant: str, settings: dict[str, Any], seed: int) -> list[tuple[float, float]]:
    """Train, unless already done; return (share of the run, AP) of each validation."""
    folder = Path(options.output) / f"{variant}-{seed}"
    length = {"minutes": options.minutes} if options.minutes else {"epochs": options.epochs}
    every = None if options.minutes else max(1, options.epochs // options.validations)
    given: dict[str, Any] = {
        "data": options.data, **length, "image_size": options.image_size, "seed": seed, "output": folder,
        "val_every": every, "workers": options.workers, **settings,
    }  # fmt: skip
    if options.batch_size:
        given["batch_size"] = options.batch_size
    if variant != "random":
        given["weights"] = options.weights
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    train_once(options.model, given)
    rows = read_table(folder / "metrics.csv")
    whole = 60 * options.minutes if options.minutes else options.epochs
    by = "seconds" if options.minutes else "epoch"
    return [(float(row[by]) / whole, float(row["AP"])) for row in rows if row.get("AP")]


def reached(curve: list[tuple[float, float]], score: float) -> float | None:
    """The share of the run after which a validation reaches this AP."""
    return next((share for share, found in curve if found >= score), None)


def row(variant: str, curves: list[list[tuple[float, float]]], ends: list[float]) -> str:
    """A line of the table; ``ends`` is the final AP from random weights, by seed."""
    at_half = [max((score for share, score in curve if share <= 0.5), default=0.0) for curve in curves]
    shares = [reached(curve, SHARE * end) for curve, end in zip(curves, ends, strict=True)]
    times = ", ".join("never" if share is None else f"{share:.0%}" for share in shares)
    return f"| {variant} | {shown(at_half)} | {shown([curve[-1][1] for curve in curves])} | {times} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--weights", required=True, help="detector to start from")
    parser.add_argument("--model", default="nextdetr-zepto")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--validations", type=int, default=6, help="number with --epochs; --minutes: the run decides")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variant", nargs="+", action="append", default=[], metavar=("NAME", "KEY=VALUE"))
    parser.add_argument("--no-start", action="store_true", help="skip the recipe's own fine-tuning")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--output", default="runs/benchmark-fine-tuning")
    parser.add_argument("--write", action="store_true", help="write the dated result file")
    options = parser.parse_args()
    shared = ("model", "epochs", "minutes", "image_size", "batch_size", "validations", "threads")
    paths = {name: str(Path(getattr(options, name)).resolve()) for name in ("data", "weights")}
    claim(Path(options.output), {name: getattr(options, name) for name in shared} | paths)
    variants: dict[str, dict[str, Any]] = {"random": {}} if options.no_start else {"random": {}, "start": {}}
    for name, *pairs in options.variant:
        variants[name] = {key: yaml.safe_load(value) for key, value in (pair.split("=", 1) for pair in pairs)}
    rows, ends = [], []
    for name, settings in variants.items():
        curves = [train(options, name, settings, seed) for seed in options.seeds]
        ends = ends or [curve[-1][1] for curve in curves]
        rows.append(row(name, curves, ends))
        print(rows[-1], flush=True)
    length = f"{options.minutes:g} minutes" if options.minutes else f"{options.epochs} epochs"
    batch = f" --batch-size {options.batch_size}" if options.batch_size else ""
    more = "".join(f" --variant {' '.join(words)}" for words in options.variant)
    lines = [
        f"# {options.model} from random weights and from a detector, {length} each",
        "",
        f"`python benchmarks/fine_tuning.py {options.data} --weights {Path(options.weights).name} --model {options.model} "
        f"--image-size {options.image_size}{batch} --seeds {' '.join(map(str, options.seeds))}{more}`. {machine()}",
        "",
        f"| | AP on `val` after half of the run | at its end | share of the run to {SHARE:.0%} of random weights' end |",
        "|---|---|---|---|",
        *rows,
    ]
    write_result(f"fine-tuning-{Path(options.model).stem}", lines, write=options.write)


if __name__ == "__main__":
    main()
