"""AdamW and Muon from random weights, in equal minutes or equal epochs, on several seeds.

    python benchmarks/optimizers.py DATA [--model nextdetr-zepto] [--minutes 8 | --epochs N] [--image-size 320]
        [--seeds 0 1 2] [--optimizers adamw muon] [--threads 2] [--output DIR] [--test] [--write]

Each run uses the recipe's settings, with the learning rate that it chooses for the optimiser, and the same minutes,
validation included. Compared by the best AP on ``val``; ``--test`` scores the best weights on ``test``, once per run.
Finished runs are reported, not trained again, and stopped ones are resumed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from nextdetr import Detector
from nextdetr.engine.log import read_table
from nextdetr.files import write_text_atomic
from results import claim, machine, with_seeds, write_result
from training import result_file, shown, train_once

OPTIMIZERS = ("adamw", "muon")
HALF = 0.5  # of the epochs


def train(options: argparse.Namespace, optimizer: str, seed: int) -> dict[str, Any]:
    """Train, unless already done; return the result, with the AP on ``test`` if asked for."""
    folder = Path(options.output) / f"{optimizer}-{seed}"
    length = {"minutes": options.minutes} if options.epochs is None else {"epochs": options.epochs}
    settings: dict[str, Any] = {
        "data": options.data, "image_size": options.image_size, "seed": seed, "output": folder, "optimizer": optimizer,
        **length,
    }  # fmt: skip
    found = train_once(options.model, settings)
    if options.test and "test" not in found:
        scored = Detector(folder / "best.safetensors").val(data=options.data, split="test", quiet=True)
        found["test"] = scored.metrics["AP"]
        write_text_atomic(result_file(folder), json.dumps(found))
    return found


def halfway(options: argparse.Namespace, optimizer: str, seed: int) -> float:
    """Highest AP on ``val`` in the first half of a run's epochs."""
    rows = read_table(Path(options.output) / f"{optimizer}-{seed}" / "metrics.csv")
    return max(float(row["AP"]) for row in rows[: round(HALF * len(rows))] if row["AP"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--model", default="nextdetr-zepto")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", default="runs/benchmark-optimizers")
    parser.add_argument("--test", action="store_true")
    parser.add_argument("--write", action="store_true", help="write the dated result file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = {name: getattr(options, name) for name in ("model", "minutes", "epochs", "image_size", "threads")}
    claim(Path(options.output), settings | {"data": str(Path(options.data).resolve())})
    found: dict[str, list[dict[str, Any]]] = {optimizer: [] for optimizer in options.optimizers}
    for seed in options.seeds:  # seed by seed, so that a stopped study has both optimisers of the first seeds
        for optimizer in options.optimizers:
            found[optimizer].append(train(options, optimizer, seed))
    length = f"{options.minutes:g} minutes" if options.epochs is None else f"{options.epochs} epochs"
    lines = [
        f"# {options.model} on {Path(options.data).stem}, {length}: AdamW and Muon",
        "",
        f"`python benchmarks/optimizers.py DATA --model {options.model} "
        f"{f'--minutes {options.minutes:g}' if options.epochs is None else f'--epochs {options.epochs}'} "
        f"--image-size {options.image_size} --seeds {' '.join(map(str, options.seeds))}`. Random weights. {machine()}",
        "",
        f"| | best AP on `val`, mean (seeds) | halfway | epochs |{' AP on `test` |' if options.test else ''}",
        f"|---|---|---|---|{'---|' if options.test else ''}",
    ]
    for optimizer, results in found.items():
        best = [result["best"]["metrics"]["AP"] for result in results]
        half = [halfway(options, optimizer, seed) for seed in options.seeds]
        epochs = ", ".join(str(result["epochs"]) for result in results)
        tested = f" {shown([result['test'] for result in results], 3)} |" if options.test else ""
        lines.append(f"| {optimizer} | {shown(best, 3)} | {shown(half, 3)} | {epochs} |{tested}")
    name = with_seeds(f"optimizers-{Path(options.model).stem}-{Path(options.data).stem}", options.seeds)
    write_result(name, lines, write=options.write)


if __name__ == "__main__":
    main()
