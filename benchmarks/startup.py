"""Time before anything happens: imports, help, building models, and a whole prediction without PyTorch.

    python benchmarks/startup.py [--light PYTHON MODEL PHOTO] [--write]

Each command runs in a separate process, five times after a warm-up; medians. timm's own large model is built in the
same run for comparison. With --light, the Python of an environment that has only ``pip install nextdetr`` predicts one
photograph with an exported MODEL, from the start of the process to its end, in turns with the import of supervision; each
timed process follows another of its kind, so that its files are in memory.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time

from results import machine, take_turns, write_result

COMMANDS = {
    "import nextdetr": ["-c", "import nextdetr"],
    "nextdetr --help": ["-m", "nextdetr", "--help"],
    "import torch (for comparison)": ["-c", "import torch"],
}
BUILD = "import time; import torch; {imports}; t = time.perf_counter(); {build}; print(time.perf_counter() - t)"
OURS = "from nextdetr.models.graph import build_model"


def process_seconds(arguments: list[str], python: str = sys.executable) -> float:
    started = time.perf_counter()
    subprocess.run([python, *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


def build_seconds(imports: str, build: str) -> float:
    code = BUILD.format(imports=imports, build=build)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout.strip().splitlines()[-1])


def row(name: str, values: list[float]) -> str:
    return f"| {name} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} |"


def predictions(python: str, model: str, photo: str, repeats: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "nextdetr predict model.onnx photo.jpg, light installation": [
                "-m", "nextdetr", "predict", model, photo, "--runtime", "onnxruntime", "--output", folder,
            ],
            "import supervision there (for comparison)": ["-c", "import supervision"],
        }  # fmt: skip
        runs = {name: lambda command=command: process_seconds(command, python) for name, command in commands.items()}
        return [row(name, values) for name, values in take_turns(runs, repeats).items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--light", nargs=3, metavar=("PYTHON", "MODEL", "PHOTO"), help="an environment without PyTorch")
    parser.add_argument("--write", action="store_true", help="write the dated result file")
    options = parser.parse_args()
    rows = []
    for name, arguments in COMMANDS.items():
        rows.append(row(name, [process_seconds(arguments) for _ in range(options.repeats + 1)][1:]))
    if options.light:
        rows += predictions(*options.light, options.repeats)
    builds = {
        f"build {name}": (OURS, f"build_model('{name}')")
        for name in ("nextdetr-atto", "rtdetr-l-convnextv2-tiny", "rtdetr-l-convnextv2-base", "rtdetr-l-convnextv2-large")
    }
    builds["timm convnextv2_large, the backbone alone"] = ("import timm", "timm.create_model('convnextv2_large')")
    for name, (imports, build) in builds.items():
        rows.append(row(name, [build_seconds(imports, build) for _ in range(min(3, options.repeats))]))
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
