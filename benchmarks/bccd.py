"""Train a model on BCCD for a given time, score it once on the test split, and write the result.

    python benchmarks/bccd.py DATA [--model nextdetr-atto] [--minutes 24] [--image-size 320] [--output DIR] [--write]

DATA is the VOC folder of BCCD (205 / 87 / 72 images). A finished run is reported, not trained again. Its test split is
scored only once: the score is stored in the run folder as ``test.json``.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from nextdetr import Detector
from results import claim, machine, write_result


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train and score, unless already done; return the test score as JSON."""
    folder = Path(options.output)
    if not (folder / "best.safetensors").is_file():
        Detector(options.model).train(
            data=options.data, minutes=options.minutes, image_size=options.image_size, seed=options.seed, output=folder
        )
    score = folder / "test.json"
    if not score.is_file():
        result = Detector(folder / "best.safetensors").val(data=options.data, split="test")
        score.write_text(json.dumps(result.to_json()), encoding="utf-8")
    scored: dict[str, Any] = json.loads(score.read_text(encoding="utf-8"))
    return scored


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--model", default="nextdetr-atto")
    parser.add_argument("--minutes", type=float, default=24)
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="runs/benchmark-bccd")
    parser.add_argument("--write", action="store_true", help="write the dated result file")
    options = parser.parse_args()
    settings = {name: getattr(options, name) for name in ("model", "minutes", "image_size", "seed")}
    claim(Path(options.output), {**settings, "data": str(Path(options.data).resolve())})
    scored = run(options)
    with (Path(options.output) / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    metrics = scored["metrics"]
    lines = [
        f"# BCCD, {options.model}, {float(rows[-1]['seconds']) / 60:.1f} minutes",
        "",
        f"`python benchmarks/bccd.py DATA --model {options.model} --minutes {options.minutes:g} "
        f"--image-size {options.image_size} --seed {options.seed}`. {machine()}",
        "",
        f"Random weights, {len(rows)} epochs, {rows[-1]['step']} steps. Test split, scored once: "
        f"**{metrics['AP']:.4f} AP, {metrics['AP50']:.4f} AP50**.",
        "",
        "| class | boxes | AP | AP50 |",
        "|---|---|---|---|",
        *(
            f"| {name} | {row['boxes']} | {row['AP']:.4f} | {row['AP50']:.4f} |"
            for name, row in scored["per_class"].items()
        ),
        "",
        "| epoch | seconds | loss | val AP | val AP50 |",
        "|---|---|---|---|---|",
        *(
            f"| {row['epoch']} | {float(row['seconds']):.0f} | {float(row['loss']):.2f} | {row['AP']} | {row['AP50']} |"
            for row in rows
        ),
    ]
    write_result(f"bccd-{options.model}", lines, write=options.write)


if __name__ == "__main__":
    main()
