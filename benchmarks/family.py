"""Parameters, GFLOP and latency of the nextdetr family and the reference model, in one run.

    python benchmarks/family.py [--sizes atto femto pico nano tiny] [--image-size 640] [--repeats 9] [--as-built] [--write]

Eager PyTorch, float32, one image, two threads, as built and with BatchNorm, RepConv and GRN's shift folded. Models take
turns, so that drift in the machine's speed affects all of them. Results are medians, and the ratio of each to the
reference. The reference is also listed with direct 3 × 3 convolutions (without Winograd), as PyTorch computes them.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from nextdetr.layers.winograd import direct_sums
from nextdetr.memory import keep_freed_memory
from nextdetr.models.fuse import fuse
from nextdetr.models.graph import build_model
from nextdetr.models.summary import count_gflop
from results import machine, take_turns, write_result

REFERENCE = "rtdetr-l-convnextv2-atto"
DIRECT = f"{REFERENCE}, direct sums"


def directly(run: Callable[[], Any]) -> Any:
    with direct_sums():
        return run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["atto", "femto", "pico", "nano", "tiny"])
    parser.add_argument("--image-size", type=int, default=640)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--as-built", action="store_true", help="skip the folded models, for large sizes")
    parser.add_argument("--write", action="store_true", help="write the dated result file")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(2)
    names = [REFERENCE, *(f"nextdetr-{size}" for size in options.sizes)]
    models = {name: build_model(name).eval() for name in names}
    folds = (False,) if options.as_built else (False, True)
    folded = {} if options.as_built else {name: fuse(model) for name, model in models.items()}
    images = torch.rand(1, 3, options.image_size, options.image_size)
    runs = {(name, fold): partial(folded[name] if fold else models[name], images) for name in names for fold in folds}
    runs |= {(DIRECT, fold): partial(directly, runs[REFERENCE, fold]) for fold in folds}
    with torch.inference_mode():
        seconds = take_turns(runs, options.repeats)
    median = {key: statistics.median(values) for key, values in seconds.items()}
    ratio = {(name, fold): value / median[REFERENCE, fold] for (name, fold), value in median.items()}
    rows = []
    for name in (REFERENCE, DIRECT, *names[1:]):
        model = models[REFERENCE if name == DIRECT else name]
        parameters = sum(parameter.numel() for parameter in model.parameters())
        times = " | ".join(f"{1000 * median[name, fold]:.0f} | {ratio[name, fold]:.2f}" for fold in folds)
        gflop = count_gflop(model, options.image_size)
        rows.append(f"| {name} | {parameters / 1e6:.1f} | {gflop:.1f} | {times} |")
    lines = [
        f"# The family at {options.image_size} px",
        "",
        f"`python benchmarks/family.py`: batch 1, float32, eager, 80 classes, median of {options.repeats}. {machine()}",
        "",
        "| | parameters, M | GFLOP | ms | ratio |" + ("" if options.as_built else " ms, folded | ratio |"),
        "|---|---|---|---|---|" + ("" if options.as_built else "---|---|"),
        *rows,
    ]
    write_result("family", lines, write=options.write)


if __name__ == "__main__":
    main()
