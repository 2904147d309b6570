"""A small detector with and without a teacher, in equal minutes or equal epochs, on several seeds.

    python benchmarks/distill.py DATA --teacher CKPT [--model nextdetr-zepto] [--minutes 24 | --epochs N]
        [--seeds 0 1 2] [--image-size 320] [--variants plain teacher half places maps] [--output DIR] [--test] [--write]

Every variant trains from random weights with the recipe's settings and the same minutes, including validation, so that
the cost of the teacher means fewer epochs; with ``--epochs``, all take the same number of steps. Variants are compared by
their best AP on ``val``. With ``--test``, the chosen one and the plain one are also scored on ``test``, once per seed; the
scores are stored in the run folders. Finished runs are reported, not trained again, and stopped ones are resumed.

plain: labels only. teacher: all distillation losses, in the whole run. half: in the first half of the run. places:
classes, boxes and edges, but no maps. maps: maps only.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from nextdetr import Detector
from nextdetr.inference.header import is_exported
from results import claim, machine, with_seeds, write_result
from training import shown, train_once

VARIANTS: dict[str, dict[str, float]] = {
    "plain": {}, "teacher": {"teacher_until": 1.0}, "half": {"teacher_until": 0.5}, "places": {"teacher_maps": 0.0},
    "maps": {"teacher_weight": 0.0},
}  # fmt: skip


def length(options: argparse.Namespace) -> dict[str, float]:
    """Length of each run: epochs if given, else minutes."""
    return {"minutes": options.minutes} if options.epochs is None else {"epochs": options.epochs}


def train(options: argparse.Namespace, variant: str, seed: int) -> dict[str, Any]:
    """Train, unless already done; return the best validation, epochs, and the teacher's share of a step."""
    settings: dict[str, Any] = {
        "data": options.data, "image_size": options.image_size, "seed": seed, "profile": True, **length(options),
        "output": Path(options.output) / f"{variant}-{seed}", **VARIANTS[variant],
    }  # fmt: skip
    if variant != "plain":
        settings["teacher"] = options.teacher
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)
    return train_once(options.model, settings)


def test(options: argparse.Namespace, variant: str, seed: int) -> float | None:
    """Score the best weights of a run on ``test``, unless already done; return AP."""
    folder = Path(options.output) / f"{variant}-{seed}"
    file = folder / "test.json"
    if not file.is_file():
        scored = Detector(folder / "best.safetensors").val(data=options.data, split="test", quiet=True)
        file.write_text(json.dumps(scored.to_json()), encoding="utf-8")
    value: float | None = json.loads(file.read_text(encoding="utf-8"))["metrics"]["AP"]
    return value


def share(result: dict[str, Any]) -> float:
    """Share of a step spent in the teacher's forward pass."""
    profile = result.get("profile") or {}
    return float(profile.get("parts", {}).get("teacher", 0.0) / max(1e-9, profile.get("step", 0.0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--model", default="nextdetr-zepto")
    parser.add_argument("--minutes", type=float, default=24)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=["plain", "teacher"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", default="runs/benchmark-distill")
    parser.add_argument("--test", action="store_true", help="score the chosen variant and the plain one on test")
    parser.add_argument("--write", action="store_true", help="write the dated result file")
    options = parser.parse_args()
    settings = {name: getattr(options, name) for name in ("model", "minutes", "epochs", "image_size", "threads")}
    paths = {name: str(Path(getattr(options, name)).resolve()) for name in ("data", "teacher")}
    claim(Path(options.output), settings | paths)
    rows, means = [], {}
    for variant in options.variants:
        results = [train(options, variant, seed) for seed in options.seeds]
        scores = [result["best"]["metrics"].get("AP") for result in results]
        means[variant] = statistics.mean(score or 0.0 for score in scores)
        epochs = statistics.mean(result["epochs"] for result in results)
        rows.append(
            f"| {variant} | {shown(scores)} | {epochs:.0f} | {statistics.mean(share(result) for result in results):.0%} |"
        )
    ((unit, amount),) = length(options).items()
    lines = [
        f"# {options.model} with and without a teacher, {amount:g} {unit} each",
        "",
        f"`python benchmarks/distill.py DATA --teacher {Path(options.teacher).name} --model {options.model} "
        f"--{unit} {amount:g} --image-size {options.image_size} "
        f"--seeds {' '.join(map(str, options.seeds))} --variants {' '.join(options.variants)}`. {machine()}",
        "",
        f"Random weights; the teacher: {teacher_line(options)}",
        "",
        "| | best AP on `val`, mean (seeds) | epochs | the teacher's share of a step |",
        "|---|---|---|---|",
        *rows,
    ]
    if options.test:
        best = max(means, key=lambda name: means[name])
        for variant in dict.fromkeys((best, *(["plain"] if "plain" in means else []))):
            found = [test(options, variant, seed) for seed in options.seeds]
            lines += ["", f"`test`, {variant}{', chosen on `val`' if variant == best else ''}: {shown(found)} AP."]
    write_result(with_seeds(f"distill-{Path(options.model).stem}", options.seeds), lines, write=options.write)


def teacher_line(options: argparse.Namespace) -> str:
    """Describe the teacher, with its AP on ``val``, scored once."""
    file = Path(options.output) / "teacher.json"
    if not file.is_file():
        scored = Detector(options.teacher).val(data=options.data, quiet=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(scored.to_json()), encoding="utf-8")
    metrics = json.loads(file.read_text(encoding="utf-8"))["metrics"]
    kind = "an exported file" if is_exported(options.teacher) else "a checkpoint"
    return f"{kind}, {metrics['AP']:.4f} AP on `val`."


if __name__ == "__main__":
    main()
