"""Peak memory of an earlier commit and the working tree: ``predict`` on many images, and a training step.

    python benchmarks/memory.py --before COMMIT [--images 1000] [--repeats 3] [--write]

Each measurement is a separate process with its side's source on the path and two threads; both sides take turns.
The result is the peak resident memory (Linux's VmHWM), the median of the repeats, including the interpreter and torch.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from before_after import ROOT, STEP, checkout, environment
from results import machine, write_result

# Appended to the measured code: prints the peak memory of the process.
PEAK = """
import re
from pathlib import Path
print("peak", int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) * 1024)
"""
PREDICT = """
import sys
import torch
from nextdetr.cli.main import main
torch.set_num_threads(2)
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
STEPS = STEP + "for _ in range(4):\n    turn()\n"


def draw_images(folder: Path, number: int) -> None:
    """Write JPEG pictures of 640 × 480 pixels, smooth noise."""
    generator = np.random.default_rng(0)
    for index in range(number):
        small = Image.fromarray(generator.integers(0, 255, (12, 16, 3), np.uint8))
        small.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{index:05d}.jpg", quality=80)


def peak(tree: Path, code: str, arguments: list[str]) -> int:
    """Peak memory of a process of one side, in bytes."""
    command = [sys.executable, "-W", "ignore", "-c", code + PEAK, *arguments]
    done = subprocess.run(command, env=environment(tree), capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("peak ")]
    if done.returncode or not lines:
        raise SystemExit(f"{tree}: {done.stderr.strip()[-1500:]}")
    return int(lines[-1].split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="commit to compare with")
    parser.add_argument("--images", type=int, default=1000, help="to predict on; 0 measures the training steps only")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write the dated result file")
    options = parser.parse_args()
    rows = []
    with checkout(options.before) as earlier, tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder, "pictures")
        pictures.mkdir()
        draw_images(pictures, options.images)
        predict = ["predict", "nextdetr-atto", str(pictures), "--image-size", "320", "--save", "json", "--output"]
        work = {
            f"predict, nextdetr-atto, {options.images} pictures at 320 px": (PREDICT, predict),
            "training step, nextdetr-atto, 320 px, batch 4": (STEPS, ["nextdetr-atto", "320", "4"]),
            "training step, rtdetr-l-convnextv2-atto, 320 px, batch 4": (STEPS, ["rtdetr-l-convnextv2-atto", "320", "4"]),
        }
        for name, (code, arguments) in work.items():
            if code == PREDICT and not options.images:
                continue
            found: dict[Path, list[int]] = {earlier: [], ROOT: []}
            for number in range(options.repeats):
                for tree, peaks in found.items():
                    target = [str(Path(folder, f"{tree.name}-{number}"))] if code == PREDICT else []
                    peaks.append(peak(tree, code, arguments + target))
            before, after = (statistics.median(found[tree]) for tree in (earlier, ROOT))
            rows.append(f"| {name} | {before / 1e6:.0f} | {after / 1e6:.0f} | **{after / before:.3f}** |")
    lines = [
        "# Peak memory, an earlier commit compared with this one",
        "",
        f"`python benchmarks/memory.py --before {options.before} --images {options.images}`: {options.repeats} processes "
        f"of each side, interleaved, medians of the peak resident memory. {machine()}",
        "",
        "| | before, MB | after, MB | after / before |",
        "|---|---|---|---|",
        *rows,
        "",
    ]
    write_result("memory" if options.images else "memory-steps", lines, write=options.write)


if __name__ == "__main__":
    main()
