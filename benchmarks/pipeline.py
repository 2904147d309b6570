"""Preprocessing and postprocessing of an image, and complete videos compared with the model alone.

    python benchmarks/pipeline.py [VIDEO] [--model nextdetr-atto] [--image-sizes 640 320] [--repeats 15] [--write]

A decoded image of 1920 × 1080 pixels is resized to the first size, and the outputs of 300 queries and 80 classes are
turned into boxes, by our code and by transformers' image processor (with torch or Pillow, its choice), interleaved.
Then ``predict`` runs on VIDEO, if given (including decoding, drawing and encoding), in PyTorch and exported to the fastest
runtime. Its images per second are compared with the same model alone on one repeated tensor. Two threads, random
weights.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nextdetr import Detector
from nextdetr.config import PredictConfig
from nextdetr.postprocess import postprocess
from nextdetr.structures import DetectorOutput
from nextdetr.tensors import as_outputs, resize_to_tensor
from results import machine, take_turns, write_result

THREADS = 2
SIZES = [(1080, 1920)]


def around_the_model(size: int, repeats: int) -> dict[str, float]:
    """Median milliseconds of preprocessing and postprocessing, ours and transformers'."""
    from transformers import RTDetrImageProcessor
    from transformers.models.rt_detr.modeling_rt_detr import RTDetrObjectDetectionOutput

    generator = np.random.default_rng(0)
    small = Image.fromarray(generator.integers(0, 255, (54, 96, 3), np.uint8))
    picture = small.resize((1920, 1080), Image.Resampling.BICUBIC)
    logits, boxes = torch.randn(1, 300, 80) - 4, torch.rand(1, 300, 4)
    processor = RTDetrImageProcessor(size={"height": size, "width": size})
    theirs = RTDetrObjectDetectionOutput(logits=logits, pred_boxes=boxes)
    runs = {
        "ours, preprocess": lambda: resize_to_tensor(picture, size),
        "transformers, preprocess": lambda: processor(images=picture, return_tensors="pt"),
        "ours, postprocess": lambda: postprocess(as_outputs(DetectorOutput(logits, boxes)), SIZES),
        "transformers, postprocess": lambda: processor.post_process_object_detection(theirs, 0.0, target_sizes=SIZES),
    }
    return {name: 1000 * statistics.median(values) for name, values in take_turns(runs, repeats).items()}


def bare_rate(detector: Detector, size: int, seconds: float) -> float:
    """Images per second of the model alone, batch 1."""
    model: Any = detector.opened.model
    images = torch.rand(1, 3, size, size)
    taken: list[float] = []
    with torch.inference_mode():
        model(images)
        while sum(taken) < seconds:
            started = time.perf_counter()
            model(images)
            taken.append(time.perf_counter() - started)
    return 1 / statistics.median(taken)


def video_rate(detector: Detector, video: str, size: int, folder: Path) -> tuple[int, float]:
    """Number of frames, and images per second from the first detection to the last written frame."""
    config = PredictConfig(output=folder, batch_size=1, save=("images", "json"), image_size=size)
    started, frames = 0.0, 0
    for _ in detector.stream(video, config):
        started = started or time.perf_counter()
        frames += 1
    return frames, (frames - 1) / (time.perf_counter() - started)


def video_rows(model: str, video: str, size: int) -> list[str]:
    """Rows of the table for one image size."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        plain = Detector(model)
        file = plain.export("onnx", image_size=size, images=1, quiet=True, output=Path(folder) / "onnx").file
        for name, detector in (("PyTorch", plain), ("exported, fastest runtime", Detector(file))):
            before = bare_rate(detector, size, 10)
            frames, rate = video_rate(detector, video, size, Path(folder) / name[:3])
            bare = (before + bare_rate(detector, size, 10)) / 2  # before and after, as the machine's speed drifts
            rows.append(f"| {size} | {name} | {frames} | {bare:.2f} | {rate:.2f} | {rate / bare:.0%} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", nargs="?")
    parser.add_argument("--model", default="nextdetr-atto")
    parser.add_argument("--image-sizes", type=int, nargs="+", default=[640, 320])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="write the dated result file")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    around = around_the_model(options.image_sizes[0], options.repeats)
    sizes = options.image_sizes if options.video else options.image_sizes[:1]
    shown = " ".join(str(size) for size in sizes)
    lines = [
        f"# Around the model, {options.model}",
        "",
        f"`python benchmarks/pipeline.py {'VIDEO ' if options.video else ''}--image-sizes {shown}`: "
        f"{THREADS} threads, medians. {machine()}",
        "",
        f"A decoded image of 1920 x 1080, to {options.image_sizes[0]} px; 300 queries, 80 classes; interleaved, "
        f"{options.repeats} times:",
        "",
        "| | ms |",
        "|---|---|",
        *(f"| {name} | {value:.1f} |" for name, value in around.items()),
        f"| ours, both | {around['ours, preprocess'] + around['ours, postprocess']:.1f} |",
    ]
    if options.video:
        rows = [row for size in sizes for row in video_rows(options.model, options.video, size)]
        lines += [
            "",
            f"`predict {Path(options.video).name}` with drawing and encoding, compared with the model alone, batch 1:",
            "",
            "| px | | frames | bare, images/s | video, images/s | share |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    write_result("pipeline" if options.video else "pipeline-image", lines, write=options.write)


if __name__ == "__main__":
    main()
