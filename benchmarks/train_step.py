"""Compare a training step of the reference model with the same model in transformers, in one run.

    python benchmarks/train_step.py [--image-size 320] [--batch-size 4] [--boxes 10] [--repeats 7]

Both models have a ConvNeXt V2 atto backbone with RT-DETR-l's encoder and decoder, 80 classes, 300 queries and 100
positive and 100 negative denoising queries. Both do forward, matching, losses and backward in float32 (no optimiser).
Steps alternate, so that drift in the machine's speed affects both. Results are medians, and the median of the pairwise
ratios. Each runs in a separate process: ours keeps freed memory as ``nextdetr train`` does, transformers' uses its
defaults. With ``--keep-memory`` both keep it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch

from in_transformers import reference_model
from nextdetr.losses.criterion import Criterion
from nextdetr.losses.matcher import HungarianMatcher
from nextdetr.memory import keep_freed_memory
from nextdetr.models.graph import build_model, load_model_file
from nextdetr.structures import Target
from results import machine, write_result

CLASSES = 80


def random_targets(batch_size: int, boxes: int) -> list[Target]:
    targets = []
    for _ in range(batch_size):
        centres, sides = 0.2 + 0.6 * torch.rand(boxes, 2), 0.05 + 0.3 * torch.rand(boxes, 2)
        targets.append(Target(torch.cat((centres, sides), 1), torch.randint(0, CLASSES, (boxes,))))
    return targets


def our_step(model_name: str) -> Callable[[torch.Tensor, list[Target]], float]:
    model = build_model(load_model_file(model_name), num_classes=CLASSES).train()
    criterion = Criterion(CLASSES, HungarianMatcher())

    def step(images: torch.Tensor, targets: list[Target]) -> float:
        model.zero_grad(set_to_none=True)
        loss = torch.stack(list(criterion(model(images, targets), targets).values())).sum()
        loss.backward()
        return float(loss.detach())

    return step


def transformers_step() -> Callable[[torch.Tensor, list[Target]], float]:
    model = reference_model().train()

    def step(images: torch.Tensor, targets: list[Target]) -> float:
        model.zero_grad(set_to_none=True)
        labels = [{"class_labels": target.labels, "boxes": target.boxes} for target in targets]
        loss = model(pixel_values=images, labels=labels).loss
        loss.backward()
        return float(loss.detach())

    return step


def serve(name: str, options: argparse.Namespace, connection: Connection) -> None:
    """Take a step on request and return its seconds, until stopped."""
    if name == "nextdetr" or options.keep_memory:
        keep_freed_memory()
    torch.manual_seed(0)
    torch.set_num_threads(2)
    images = torch.rand(options.batch_size, 3, options.image_size, options.image_size)
    targets = random_targets(options.batch_size, options.boxes)
    step = our_step("rtdetr-l-convnextv2-atto") if name == "nextdetr" else transformers_step()
    while connection.recv():
        started = time.perf_counter()
        step(images, targets)
        connection.send(time.perf_counter() - started)


def take_turns(options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds per image of each step, by program."""
    context = multiprocessing.get_context("spawn")
    seconds: dict[str, list[float]] = {"nextdetr": [], "transformers": []}
    connections, processes = {}, []
    for name in seconds:
        connections[name], theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(name, options, theirs), daemon=True))
        processes[-1].start()
    for repeat in range(options.repeats + 2):
        for name, connection in connections.items():
            connection.send(True)
            taken = connection.recv()
            if repeat >= 2:  # the first two are warm-up
                seconds[name].append(taken / options.batch_size)
    for connection, process in zip(connections.values(), processes, strict=True):
        connection.send(False)
        process.join()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--boxes", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--keep-memory", action="store_true", help="keep freed memory in transformers' process, too")
    parser.add_argument("--write", action="store_true", help="write the dated result file")
    options = parser.parse_args()
    seconds = take_turns(options)
    ratio = statistics.median(
        ours / theirs for ours, theirs in zip(seconds["nextdetr"], seconds["transformers"], strict=True)
    )
    keeping = "both" if options.keep_memory else "ours"
    lines = [
        "# One training step of the reference model",
        "",
        f"`python benchmarks/train_step.py`: {options.image_size} px, batch {options.batch_size}, {options.boxes} boxes "
        f"per image, 2 threads, float32, median of {options.repeats}; freed memory kept by {keeping}. {machine()}",
        "",
        "| | seconds per image, median | min | max |",
        "|---|---|---|---|",
        *(
            f"| {name} | {statistics.median(values):.3f} | {min(values):.3f} | {max(values):.3f} |"
            for name, values in seconds.items()
        ),
        "",
        f"Ratio nextdetr / transformers, median of pairs: **{ratio:.2f}**",
    ]
    write_result("train_step", lines, write=options.write)


if __name__ == "__main__":
    main()
