"""Time and memory of loading a detector of 22 million parameters, beside torch's own way on the same file.

    python benchmarks/weights_load.py [--write]

Each case runs in a process of its own, imports done: a model (rtdetr-l-convnextv2-atto, 3 classes) is built, then loaded;
the median of three. Seconds are those of the load: ours recognises the file, checks every tensor for its type and for NaN,
and reports; torch's does not. Memory is the peak of the process above what it had before the model was built, so that the
model itself is in it, as a multiple of the file.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from results import machine, write_result

MODEL, CLASSES = "rtdetr-l-convnextv2-atto", ["a", "b", "c"]
MOST_SECONDS, MOST_MEMORY = 1.0, 2.2  # the target, for ours
CHILD = """
import os, sys, time
import torch, safetensors.torch
import nextdetr.weights.start
from nextdetr.models.checkpoint import open_model
from nextdetr.models.graph import build_model
from nextdetr.weights.load import load_into
def memory(which):
    line = next(line for line in open("/proc/self/status") if line.startswith(which))
    return int(line.split()[1]) * 1024
how, path, classes = sys.argv[1], sys.argv[2], int(sys.argv[3])
before = memory("VmRSS")
model = build_model({model!r}, num_classes=classes) if how != "open" else None
start = time.perf_counter()
if how == "ours":
    assert load_into(model, path).complete
elif how == "open":
    open_model(path)
elif path.endswith(".pt"):
    model.load_state_dict(torch.load(path, weights_only=True))
else:
    model.load_state_dict(safetensors.torch.load_file(path))
print(time.perf_counter() - start, (memory("VmHWM") - before) / os.path.getsize(path))
"""


def make_files(folder: Path) -> dict[str, Path]:
    """Write the same random detector in each form."""
    import torch

    from nextdetr.models.checkpoint import save_detector
    from nextdetr.models.graph import build_model

    model = build_model(MODEL, num_classes=len(CLASSES))
    state = model.state_dict()
    safetensors, torch_file, foreign = (folder / name for name in ("ours.safetensors", "ours.pt", "ultralytics.pt"))
    save_detector(safetensors, state, model_text=model.text, classes=CLASSES, image_size=640)
    torch.save(state, torch_file)
    last = f"model.{len(model.rows) - 1}.input_proj."
    renamed = {}
    for name, tensor in state.items():
        name = name.replace("rows.", "model.", 1)
        renamed[name.replace(".conv.", ".0.").replace(".bn.", ".1.") if name.startswith(last) else name] = tensor
    torch.save({"model": renamed}, foreign)
    return {"ours, .safetensors": safetensors, "ours, .pt": torch_file, "ultralytics' names, .pt": foreign}


def measure(how: str, path: Path) -> tuple[float, float]:
    """Return the medians of seconds and of memory over the file's size."""
    results = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", CHILD.format(model=MODEL), how, str(path), str(len(CLASSES))],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        seconds, memory = map(float, done.stdout.split())
        results.append((seconds, memory))
    return statistics.median(r[0] for r in results), statistics.median(r[1] for r in results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the dated result file")
    options = parser.parse_args()
    rows, over = [], []
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder))
        size = max(path.stat().st_size for path in files.values()) / 1e6
        cases = [(label, "ours", path) for label, path in files.items()]
        cases += [("open_model (as predict does), .safetensors", "open", files["ours, .safetensors"])]
        cases += [("safetensors.torch.load_file + load_state_dict", "torch", files["ours, .safetensors"])]
        cases += [("torch.load(weights_only=True) + load_state_dict, .pt", "torch", files["ours, .pt"])]
        for label, how, path in cases:
            seconds, memory = measure(how, path)
            rows.append(f"| {label} | {seconds:.2f} | {memory:.2f} |")
            if how != "torch" and (seconds > MOST_SECONDS or memory > MOST_MEMORY):
                over.append(label)
    target = f"under {MOST_SECONDS:g} s and {MOST_MEMORY:g} x the file"
    lines = [
        "# Loading a checkpoint of 22 million parameters",
        "",
        f"`python benchmarks/weights_load.py`; files of {size:.0f} MB, float32, warm. {machine()}",
        "The peak has the model itself in it, which alone is 1.1 x the file.",
        "",
        "| | seconds | peak memory / file |",
        "|---|---|---|",
        *rows,
        "",
        f"Target: {target}. " + (f"Over it: {', '.join(over)}." if over else "All of ours are within it."),
    ]
    write_result("weights-load", lines, write=options.write)
    sys.exit(1 if over else 0)


if __name__ == "__main__":
    main()
