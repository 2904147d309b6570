"""Our exported reference model and the same model of transformers in ONNX Runtime, OpenVINO and eager PyTorch, in one run.

    python benchmarks/runtimes.py [--image-size 640] [--repeats 9] [--int8-data DATA] [--checkpoint FILE] [--write]

RT-DETR-l's encoder and decoder on ConvNeXt V2 atto, 80 classes, random weights, batch 1, two threads. Ours is exported
by ``nextdetr export`` and returns final detections; theirs is exported by torch and returns logits and boxes, which is
slightly less work. All sessions are open at once and take turns, so that drift in the machine's speed affects all of
them. Results are medians, and their ratio to the better of transformers' files. "Direct" files do not use Winograd's
filtering. With ``--int8-data``, the model is also quantised on 32 training images of that data set, in all convolutions
and matrix products that support it; whether the accuracy allows that needs a trained detector (``nextdetr export
--int8``).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch

from anchor_peer import Outputs
from in_transformers import reference_model
from nextdetr import Detector
from nextdetr.config import ExportConfig, build_config
from nextdetr.export.run import export
from nextdetr.inference.onnx import open_onnx, start_session
from nextdetr.inference.openvino import compile_on_cpu, open_openvino
from nextdetr.memory import keep_freed_memory
from nextdetr.models.fuse import fuse
from results import machine, take_turns, write_result

REFERENCE = "rtdetr-l-convnextv2-atto"
THREADS = 2
Run = Callable[[], Any]


def export_theirs(model: torch.nn.Module, path: str, size: int) -> None:
    torch.onnx.export(
        Outputs(model), (torch.zeros(1, 3, size, size),), path, dynamo=False, opset_version=17, input_names=["images"],
        output_names=["logits", "boxes"],
    )  # fmt: skip


def candidates(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Run], dict[str, int]]:
    """Functions to time, by name, and the sizes of the files in bytes."""
    size = options.image_size
    pixels = torch.rand(1, 3, size, size)
    image = {"images": pixels.numpy()}
    detector = Detector(options.checkpoint or REFERENCE)
    runs: dict[str, Run] = {}
    sizes: dict[str, int] = {}
    variants: dict[str, dict[str, Any]] = {"float32": {}}
    if options.int8_data:
        variants["float32, direct"] = {"winograd": False}
        variants["int8"] = {"int8": True, "data": options.int8_data, "calibration_images": 32}
    for variant, given in variants.items():
        for kind, opener in (("onnx", open_onnx), ("openvino", open_openvino)):
            terms = {"format": kind, "output": folder / f"{kind}, {variant}", "image_size": size, "images": 1, **given}
            made = export(detector.opened, build_config(ExportConfig, terms))
            session = opener(Path(made.file), threads=THREADS)
            feed = {**image, "sizes": np.array([[size, size]], np.int64)}
            name = f"ours, {'ONNX Runtime' if kind == 'onnx' else 'OpenVINO'}, {variant}"
            runs[name] = partial(session.run, feed)
            sizes[name] = made.bytes
    folded, peer = fuse(detector.opened.model), reference_model().eval()  # type: ignore[type-var]
    file = str(folder / "theirs.onnx")
    export_theirs(peer, file, size)
    runs["transformers, ONNX Runtime, float32"] = partial(start_session(file, THREADS).run, None, image)
    compiled = compile_on_cpu(openvino.Core(), file, THREADS)
    runs["transformers, OpenVINO, float32"] = partial(compiled.create_infer_request().infer, image)
    runs["ours, PyTorch eager, folded"] = lambda: folded(pixels)
    runs["transformers, PyTorch eager"] = lambda: peer(pixel_values=pixels)
    return runs, sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=640)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--checkpoint", help="trained detector to measure instead of random weights")
    parser.add_argument("--int8-data", help="data set for 8-bit calibration")
    parser.add_argument("--write", action="store_true", help="write the dated result file")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        runs, sizes = candidates(options, Path(folder))
        with torch.inference_mode():
            seconds = take_turns(runs, options.repeats)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    best = min(value for name, value in median.items() if name.startswith("transformers, O"))
    rows = []
    for name, value in median.items():
        same = f"{name.rsplit(',', 1)[0]}, float32" if name.endswith("int8") else ""  # the float32 file of the same runtime
        against = f"{value / median[same]:.2f}" if same else ""
        smaller = f" ({sizes[name] / sizes[f'{same}, direct']:.2f} of direct)" if same else ""
        file = f"{sizes[name] / 1e6:.1f}{smaller}" if name in sizes else ""
        rows.append(f"| {name} | {1000 * value:.0f} | {value / best:.2f} | {against} | {file} |")
    given = " --int8-data DATA" if options.int8_data else ""
    lines = [
        f"# Runtimes, {options.checkpoint or REFERENCE} at {options.image_size} px",
        "",
        f"`python benchmarks/runtimes.py{given}`: batch 1, {THREADS} threads, median of {options.repeats}, interleaved. "
        f"{machine()}",
        "",
        "| | ms | ratio to the better of transformers' files | to the same runtime's float32 | file, MB |",
        "|---|---|---|---|---|",
        *rows,
    ]
    write_result("runtimes", lines, write=options.write)


if __name__ == "__main__":
    main()
