"""Do exported files give the same results as PyTorch? Every size from atto to tiny, ONNX and OpenVINO, float32.

    python benchmarks/export_parity.py [--sizes atto femto pico nano tiny] [--image-size 320] [--images 8] [--write]

Each ``nextdetr-*`` has random weights, with statistics and heads perturbed so that scores differ as in a trained
detector, and is exported by ``nextdetr export``. The result is the gate's own comparison on random images: how many
detections have a match within 0.001 (boxes as fractions, scores), and the largest difference of those. They are matched
by class and box, since queries with nearly equal scores may swap.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from nextdetr import Detector
from results import machine, write_result

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.export.helpers import checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["atto", "femto", "pico", "nano", "tiny"])
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--write", action="store_true", help="write the dated result file")
    options = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    rows = []
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            source = checkpoint(Path(folder), f"nextdetr-{size}", options.image_size)
            for kind in ("onnx", "openvino"):
                made = Detector(source).export(kind, output=Path(folder) / kind, images=options.images, quiet=True)
                found = made.comparison
                rows.append(
                    f"| nextdetr-{size} | {kind} | {found.detections} | {found.matched:.2%} | {found.box:.1e} | "
                    f"{found.score:.1e} | {'yes' if made.passed else 'no'} | {made.bytes / 1e6:.1f} |"
                )
                print(rows[-1], flush=True)
    lines = [
        f"# Exports compared with PyTorch, {options.image_size} px",
        "",
        f"`python benchmarks/export_parity.py`: float32, {options.images} random images. {machine()}",
        "",
        "| | format | detections | within 0.001 | boxes | scores | gate passed | file, MB |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
    ]
    write_result("export_parity", lines, write=options.write)


if __name__ == "__main__":
    main()
