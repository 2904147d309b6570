"""Training next to other programs: images per second with 0, 1 and 2 endless loops running.

    python benchmarks/busy_machine.py DATA [--loops 0 1 2] [--minutes 0.75] [--turns 2] [--model nextdetr-zepto]
        [--image-size 320] [--threads 2] [--peer yolo26n] [--environment ~/.cache/nextdetr-peers] [--write]

All of a turn's programs train from random weights for these minutes, one after the other: ours as users start it, which
chooses the number of threads while it trains; ours with ``OMP_NUM_THREADS``, which fixes it; and the peer with its own
defaults, in a separate environment. A program's images per second are its images over the time of training; ours validates
once, at the end, the peer after each epoch. So compare each program with its own row of 0 loops.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from environments import surroundings
from peer_data import read_splits
from peers import run_peer
from results import machine, write_result


@contextlib.contextmanager
def busy(loops: int) -> Iterator[None]:
    """Keep this many cores busy."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def ours(options: argparse.Namespace, folder: Path, *, fixed: bool) -> float:
    """Images per second of our training."""
    environ = surroundings(options.threads) | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    if not fixed:
        environ = {name: value for name, value in environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    command = [
        sys.executable, "-m", "nextdetr", "train", "--data", options.data, "--model", options.model, "--image-size",
        str(options.image_size), "--minutes", str(options.minutes), "--start", "none", "--val-every", "1000", "--output",
        str(folder), "--json",
    ]  # fmt: skip
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environ)
    return float(json.loads(done.stdout)["images_per_second"])


def peer(options: argparse.Namespace, folder: Path) -> float:
    """Images per second of the peer over its finished epochs, the first one apart."""
    splits = read_splits(options.data)
    splits.pop("test", None)
    given = argparse.Namespace(**vars(options) | {"seed": 0, "snapshots": 1, "batch_size": 8})
    run_peer(options.peer, given, splits, folder)
    seconds = list(json.loads((folder / "times.json").read_text(encoding="utf-8"))["seconds"].values())
    epochs = len(seconds) - 1
    if epochs < 1:
        return float("nan")
    return float(epochs * len(splits["train"].records) / (seconds[-1] - seconds[0]))


def measure(options: argparse.Namespace, folder: Path) -> dict[int, dict[str, list[float]]]:
    """Images per second by number of loops and program, one value per turn."""
    found: dict[int, dict[str, list[float]]] = {loops: {} for loops in options.loops}
    for turn in range(options.turns):
        for loops in options.loops:
            runs = {
                "ours": lambda where: ours(options, where, fixed=False),
                f"ours, {options.threads} threads fixed": lambda where: ours(options, where, fixed=True),
            }
            if options.peer:
                runs[options.peer] = lambda where: peer(options, where)
            for name, run in runs.items():
                with busy(loops):
                    speed = run(folder / f"{turn}-{loops}-{name.replace(',', '').replace(' ', '-')}")
                found[loops].setdefault(name, []).append(speed)
                print(f"{loops} loops, {name}: {speed:.1f} images per second", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--loops", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=0.75)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--model", default="nextdetr-zepto")
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--threads", type=int, default=2, help="of the peer and of our row with a fixed number")
    parser.add_argument("--peer", default="yolo26n", help="'' for none")
    parser.add_argument("--environment", default="~/.cache/nextdetr-peers")
    parser.add_argument("--write", action="store_true", help="write the dated result file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    names = list(next(iter(found.values())))
    lines = [
        f"# Training next to other programs, {options.model} at {options.image_size} px", "",
        f"`python benchmarks/busy_machine.py {shlex.join(sys.argv[1:])}`. {machine()}", "",
        "Images per second, median of the turns (each of them):", "",
        "| endless loops | " + " | ".join(names) + " |", "|---|" + "---|" * len(names),
    ]  # fmt: skip
    for loops, of_loops in found.items():
        cells = (
            f"{statistics.median(of_loops[name]):.1f} ({', '.join(f'{v:.1f}' for v in of_loops[name])})" for name in names
        )
        lines.append(f"| {loops} | " + " | ".join(cells) + " |")
    write_result("busy_machine", lines, write=options.write)


if __name__ == "__main__":
    main()
