"""Compare an earlier commit with the working tree in one run: training step, loading a checkpoint, startup.

    python benchmarks/before_after.py --before COMMIT [--pairs 20] [--write]

The earlier commit is checked out into a temporary folder. Both sides run in the same environment, in separate processes
with their own source on the path, and take turns, so that drift in the machine's speed affects both. Results are the
medians, and the median of the pairwise ratios (after / before) with a 95 % bootstrap interval over the pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from results import machine, ratio, write_result

ROOT = Path(__file__).resolve().parents[1]

# Code of a worker: for each line of input, it takes one turn and prints the seconds.
STEP = """
import sys, time
import torch
from nextdetr.losses.criterion import Criterion
from nextdetr.losses.matcher import HungarianMatcher
from nextdetr.memory import keep_freed_memory
from nextdetr.models.graph import build_model
from nextdetr.structures import Target
name, size, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
keep_freed_memory()
torch.set_num_threads(2)
torch.manual_seed(0)
model = build_model(name, num_classes=80).train()
criterion = Criterion(80, HungarianMatcher())
images = torch.rand(batch, 3, size, size)
targets = [
    Target(torch.cat((0.2 + 0.6 * torch.rand(10, 2), 0.05 + 0.3 * torch.rand(10, 2)), 1), torch.randint(0, 80, (10,)))
    for _ in range(batch)
]
def turn():
    model.zero_grad(set_to_none=True)
    torch.stack(list(criterion(model(images, targets), targets).values())).sum().backward()
"""
PRETRAIN = """
import sys, time
import torch
from nextdetr.memory import keep_freed_memory
from nextdetr.models.convnextv2 import convnextv2
from nextdetr.models.fcmae import FCMAE
keep_freed_memory()
torch.set_num_threads(2)
torch.manual_seed(0)
model = FCMAE(convnextv2("atto"), decoder_width=160).train()
images = torch.rand(16, 3, 224, 224)
def turn():
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    model(images).backward()
"""
LOAD = """
import sys, time
import torch
from nextdetr.weights.start import open_detector
torch.set_num_threads(2)
path = sys.argv[1]
def turn():
    open_detector(path)
"""
PREDICT = """
import sys, time
import numpy as np
import torch
from nextdetr import Detector
torch.set_num_threads(2)
detector = Detector(sys.argv[1])
image = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
def turn():
    detector.predict(image, image_size=320)
"""
SERVE = """
for line in sys.stdin:
    started = time.perf_counter()
    turn()
    print("seconds", time.perf_counter() - started, flush=True)
"""
COMMANDS = {
    "import nextdetr": ["-c", "import nextdetr"],
    "nextdetr --help": ["-m", "nextdetr", "--help"],
    "nextdetr info nextdetr-atto": ["-m", "nextdetr", "info", "nextdetr-atto"],
}


def environment(source: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(source / "src")}


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """The tree of ``commit`` in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "-C", ROOT, "archive", commit, "src"], check=True, capture_output=True)
        subprocess.run(["tar", "-x", "-C", folder], check=True, input=archive.stdout)
        yield Path(folder)


class Worker:
    """A process of one side that takes a turn on request."""

    def __init__(self, source: Path, code: str, arguments: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code + SERVE, *arguments], env=environment(source), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def turn(self) -> float:
        """Seconds of one more turn."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
        raise SystemExit(f"a worker ended with exit code {self.process.wait()}")

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


class Command:
    """A command of one side, in a new process each time."""

    def __init__(self, source: Path, arguments: list[str]) -> None:
        self.source, self.arguments = source, arguments

    def turn(self) -> float:
        """Seconds of one more turn."""
        started = time.perf_counter()
        subprocess.run([sys.executable, *self.arguments], check=True, capture_output=True, env=environment(self.source))
        return time.perf_counter() - started

    def close(self) -> None:
        """Nothing stays open."""


def alternate(before: Worker | Command, after: Worker | Command, pairs: int) -> list[tuple[float, float]]:
    """Seconds of both sides, interleaved, after two warm-up rounds; which side starts alternates."""
    found = []
    for number in range(pairs + 2):
        if number % 2:
            second, first = after.turn(), before.turn()
        else:
            first, second = before.turn(), after.turn()
        if number >= 2:
            found.append((first, second))
    before.close()
    after.close()
    return found


def row(name: str, pairs: list[tuple[float, float]]) -> str:
    """A line of the table: medians, and the median of the ratios with its interval."""
    before, after = ([pair[side] for pair in pairs] for side in (0, 1))
    middle, low, high = ratio(before, after)
    medians = f"{statistics.median(before):.4f} | {statistics.median(after):.4f}"
    return f"| {name} | {medians} | **{middle:.3f}** | {low:.3f} to {high:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="commit to compare with")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=(), help="measure only rows that contain these words")
    parser.add_argument("--write", action="store_true", help="write the dated result file")
    options = parser.parse_args()
    with checkout(options.before) as earlier, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "reference.safetensors"
        save = f"from nextdetr import Detector; Detector('rtdetr-l-convnextv2-atto').save({json.dumps(str(file))})"
        subprocess.run([sys.executable, "-c", save], check=True, env=environment(earlier), capture_output=True)
        workers = {
            "training step, rtdetr-l-convnextv2-atto, 320 px, batch 4": (STEP, ["rtdetr-l-convnextv2-atto", "320", "4"]),
            "training step, nextdetr-atto, 320 px, batch 4": (STEP, ["nextdetr-atto", "320", "4"]),
            "pre-training step, convnextv2-atto, 224 px, batch 16": (PRETRAIN, []),
            "predict one picture, rtdetr-l-convnextv2-atto, 320 px": (PREDICT, [str(file)]),
            "loading a detector of 22 M parameters": (LOAD, [str(file)]),
        }
        rows = []
        for name in workers:
            if asked(name, options.only):
                pairs = alternate(*(Worker(tree, *workers[name]) for tree in (earlier, ROOT)), options.pairs)
                rows.append(row(name, pairs))
        for name, arguments in COMMANDS.items():
            if asked(name, options.only):
                pairs = alternate(*(Command(tree, arguments) for tree in (earlier, ROOT)), options.pairs)
                rows.append(row(name, pairs))
    lines = [
        "# An earlier commit compared with this one",
        "",
        f"`python benchmarks/before_after.py --before {options.before}`: {options.pairs} alternating pairs, seconds, "
        f"medians; 95 % bootstrap interval. {machine()}",
        "",
        "| | before | after | after / before | interval |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ]
    write_result("before_after", lines, write=options.write)


def asked(name: str, words: list[str]) -> bool:
    """Whether a row was requested."""
    return not words or any(word in name for word in words)


if __name__ == "__main__":
    main()
