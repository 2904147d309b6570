"""Time before anything happens: imports, help, and building models.

    python benchmarks/startup.py [--write]

Each command runs in a separate process, five times after a warm-up; medians. timm's own large model is built in the
same run for comparison.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from results import machine, write_result

COMMANDS = {
    "import nextdetr": ["-c", "import nextdetr"],
    "nextdetr --help": ["-m", "nextdetr", "--help"],
    "import torch (for comparison)": ["-c", "import torch"],
}
BUILD = "import time; import torch; {imports}; t = time.perf_counter(); {build}; print(time.perf_counter() - t)"
OURS = "from nextdetr.models.graph import build_model"


def process_seconds(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


def build_seconds(imports: str, build: str) -> float:
    code = BUILD.format(imports=imports, build=build)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write the dated result file")
    options = parser.parse_args()
    rows = []
    for name, arguments in COMMANDS.items():
        values = [process_seconds(arguments) for _ in range(options.repeats + 1)][1:]
        rows.append(f"| {name} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} |")
    builds = {
        f"build {name}": (OURS, f"build_model('{name}')")
        for name in ("nextdetr-atto", "rtdetr-l-convnextv2-tiny", "rtdetr-l-convnextv2-base", "rtdetr-l-convnextv2-large")
    }
    builds["timm convnextv2_large, the backbone alone"] = ("import timm", "timm.create_model('convnextv2_large')")
    for name, (imports, build) in builds.items():
        values = [build_seconds(imports, build) for _ in range(min(3, options.repeats))]
        rows.append(f"| {name} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} |")
    lines = [
        "# Startup",
        "",
        f"`python benchmarks/startup.py`, seconds; builds are timed inside the process. {machine()}",
        "",
        "| | median | min | max |",
        "|---|---|---|---|",
        *rows,
    ]
    write_result("startup", lines, write=options.write)


if __name__ == "__main__":
    main()
