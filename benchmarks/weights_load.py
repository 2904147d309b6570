"""Time and peak memory of loading weights, compared with the programs that wrote them.

    python benchmarks/weights_load.py [--repeats 5] [--write]

Random weights are written to a temporary folder: a detector of 22 M parameters in our own format and as a transformers
folder (RT-DETR with ConvNeXt V2 atto), and a ConvNeXt V2 tiny in the format of the published ``.pt``. Each load runs in
a separate process. Time is from the file name to a model ready to run, including construction, after all imports.
Memory is the peak resident memory above that after the imports, including pages of the mapped file, as a multiple of
the file size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from in_transformers import reference_model
from results import machine, write_result

MEASURE = """
import json, sys, time
from pathlib import Path
import torch
def resident(field):  # in bytes; getrusage would count what the parent process had before the fork
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
torch.set_num_threads(2)
{imports}
path = sys.argv[1]
Path("/proc/self/clear_refs").write_text("5")  # restarts the high-water mark
before = resident("VmRSS")
started = time.perf_counter()
{load}
seconds = time.perf_counter() - started
print(json.dumps([seconds, resident("VmHWM") - before]))
"""
START = "from nextdetr.weights.start import open_detector, start_model"
LOADS = {
    "nextdetr, own .safetensors": ("own.safetensors", START, "open_detector(path)"),
    "nextdetr, transformers folder": ("folder", START, "start_model('rtdetr-l-convnextv2-atto', weights=path)"),
    "transformers, the same folder": (
        "folder",
        "from transformers import RTDetrForObjectDetection",
        "RTDetrForObjectDetection.from_pretrained(path)",
    ),
    "nextdetr, published .pt of a backbone": (
        "tiny.pt",
        "from nextdetr.models.convnextv2 import convnextv2\nfrom nextdetr.weights.backbone import open_features",
        "open_features(path)",
    ),
    "timm with torch.load, the same file": (
        "tiny.pt",
        "import timm\nfrom timm.models.convnext import checkpoint_filter_fn",
        "model = timm.create_model('convnextv2_tiny')\n"
        "state = torch.load(path, weights_only=True)['model']\n"
        "model.load_state_dict(checkpoint_filter_fn(state, model))",
    ),
}


def write_files(folder: Path) -> None:
    from nextdetr.models.convnextv2 import convnextv2
    from nextdetr.models.graph import build_model
    from nextdetr.weights.checkpoint import save_detector
    from nextdetr.weights.layouts.convnext_original import to_original

    model = build_model("rtdetr-l-convnextv2-atto")
    save_detector(
        folder / "own.safetensors", model.state_dict(), model_text=model.text, classes=[f"c{k}" for k in range(80)],
        image_size=640, metrics={}, weights_licence="none", source_weights="none",
    )  # fmt: skip
    reference_model().save_pretrained(folder / "folder")
    tiny = convnextv2("tiny", num_classes=1000)
    torch.save({"model": to_original(tiny.state_dict())}, folder / "tiny.pt")


def measure(imports: str, load: str, path: Path) -> tuple[float, float]:
    code = MEASURE.format(imports=imports, load=load)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(path)], check=True, capture_output=True, text=True
    )
    seconds, memory = json.loads(done.stdout.strip().splitlines()[-1])
    size = sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
    return seconds, memory / size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write the dated result file")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_files(folder)
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in LOADS}
        for _ in range(options.repeats):  # interleaved, so that all see the same machine
            for name, (file, imports, load) in LOADS.items():
                found[name].append(measure(imports, load, folder / file))
        for name, values in found.items():
            seconds, memory = (statistics.median(value[k] for value in values) for k in (0, 1))
            rows.append(f"| {name} | {seconds:.2f} | {memory:.2f} |")
    lines = [
        "# Loading weights",
        "",
        f"`python benchmarks/weights_load.py`, medians of {options.repeats}. {machine()}",
        "",
        "| | seconds | peak memory / file |",
        "|---|---|---|",
        *rows,
        "",
    ]
    write_result("weights_load", lines, write=options.write)


if __name__ == "__main__":
    main()
