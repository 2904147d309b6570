"""A trained detector's float32 and 8-bit files in ONNX Runtime and OpenVINO: AP, latency and size, in one run.

    python benchmarks/int8.py CHECKPOINT --data DATA [--split val] [--image-size S] [--seconds 20] [--output DIR] [--write]

Each file is exported by ``nextdetr export`` as a user would do it, including accuracy control, and scored by its gate
in every runtime that opens it. Then all sessions are opened together and take turns, batch 1, two threads. Results are
medians, and their ratio to the same runtime's float32 file of the same format.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nextdetr import Detector
from nextdetr.export.advice import instructions_for_8_bits
from nextdetr.export.measure import in_turn
from nextdetr.inference.runtimes import open_session
from results import machine, write_result

THREADS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="trained detector")
    parser.add_argument("--data", required=True, help="data set for calibration and scoring")
    parser.add_argument("--split", default="val")
    parser.add_argument("--image-size", type=int, help="side of the input in pixels (default: the checkpoint's)")
    parser.add_argument("--seconds", type=float, default=20.0, help="time to measure, for all sessions together")
    parser.add_argument("--output", type=Path, help="folder to keep the files in (default: a temporary one)")
    parser.add_argument("--write", action="store_true", help="write the dated result file")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    detector = Detector(options.checkpoint)
    runs: dict[tuple[str, str, str], Any] = {}
    found: dict[tuple[str, str, str], tuple[float | None, int]] = {}
    before: float | None = None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for kind in ("onnx", "openvino"):
            for precision in ("float32", "int8"):
                made = detector.export(
                    kind, data=options.data, split=options.split, int8=precision == "int8", image_size=options.image_size,
                    output=(options.output or Path(folder)) / f"{kind}_{precision}", quiet=True,
                )  # fmt: skip
                before = made.metrics["before"]["AP"]
                for runtime, verdict in made.runtimes.items():
                    session, contract, _ = open_session(made.file, threads=THREADS, runtime=runtime)
                    side = contract.image_size
                    pixels = np.random.default_rng(0).random((1, 3, side, side), np.float32)
                    feed = {"images": pixels, "sizes": np.array([[side, side]], np.int64)}
                    key = (kind, runtime, precision)
                    runs[key] = partial(session.run, feed)
                    found[key] = (verdict.metrics.get("AP"), made.bytes)
        seconds = in_turn(runs, options.seconds)
    rows = []
    for (kind, runtime, precision), time in seconds.items():
        score, size = found[kind, runtime, precision]
        ratio = time / seconds[kind, runtime, "float32"]
        text = "-" if score is None else f"{score:.4f}"
        rows.append(f"| {kind} | {runtime} | {precision} | {text} | {1000 * time:.1f} | {ratio:.2f} | {size / 1e6:.1f} |")
    lines = [
        f"# 8 bits, {Path(options.checkpoint).name} at {side} px on {Path(options.data).name}, {options.split}",
        "",
        f"`python benchmarks/int8.py CHECKPOINT --data DATA`: batch 1, {THREADS} threads, interleaved. AP of the "
        f"checkpoint in PyTorch: {'-' if before is None else f'{before:.4f}'}. Instructions for 8-bit products: "
        f"{instructions_for_8_bits()}. {machine()}",
        "",
        "| file | runtime | precision | AP | ms | to float32 | MB |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]
    write_result("int8", lines, write=options.write)


if __name__ == "__main__":
    main()
