"""A fixed camera: time and AP of ``--static-camera`` and of normal prediction.

    python benchmarks/static_camera.py VIDEO --weights CHECKPOINT --data DATA [--image-size 640] [--parts time ap] [--write]

Time: all frames of VIDEO, preprocessed, run and postprocessed one at a time, as in ``predict``. Normal prediction and
the exported file in the fastest runtime, whose time does not depend on content, take turns on every fourth frame of the
same part. Two threads.

AP: the video against the detections of normal prediction (scores from 0.3, or from 0.05 if there are none), and two
labelled sequences. In these, objects cut out of images of DATA (its split ``val``), whose classes CHECKPOINT was
trained on, move over a still image with its own labelled objects and with camera noise. The second sequence has more
and faster objects and changing light. Objects that are half covered have no label.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from nextdetr import Detector
from nextdetr.data.records import DetectionData, ImageRecord
from nextdetr.data.sources import load_data
from nextdetr.engine.evaluate import CocoEvaluator
from nextdetr.inference.frames import unfold
from nextdetr.inference.pytorch.static_camera import StaticCamera
from nextdetr.inference.sources import find_images
from nextdetr.postprocess import Detected, postprocess
from nextdetr.preprocess import load_image
from nextdetr.tensors import as_outputs, resize_to_tensor
from results import machine, write_result

THREADS = 2
STRETCH = 16  # frames after which the modes take turns
EVERY = 4  # modes whose time does not depend on content process one in this many of these frames


@dataclass(frozen=True, slots=True)
class Labelled:
    """A frame and its labels: xyxy boxes in pixels, and their classes."""

    image: Image.Image
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


def video_frames(video: str) -> Iterator[Image.Image]:
    for item in unfold(find_images(video, videos=True)):
        yield Image.fromarray(np.asarray(item.image))


def detect(model: Any, image: Image.Image, size: int) -> Detected:
    with torch.inference_mode():
        output = model(resize_to_tensor(image, size)[None])
    return postprocess(as_outputs(output), [(image.height, image.width)])[0]


def time_video(
    detector: Detector, video: str, size: int, exported_file: str | None
) -> tuple[dict[str, list[float]], StaticCamera]:
    """Seconds of each frame, for the three modes."""
    with tempfile.TemporaryDirectory() as folder:
        exported = Detector(
            exported_file
            or detector.export("onnx", image_size=size, images=1, quiet=True, output=Path(folder) / "onnx").file
        )
        plain: Any = detector.opened.model.eval()
        camera = StaticCamera(plain)
        ways: dict[str, Any] = {"plain": plain, "static camera": camera, "exported": exported.opened.model}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for model in (plain, ways["exported"]):
            detect(model, Image.new("RGB", (64, 64)), size)
        waiting: list[Image.Image] = []

        def run() -> None:
            for name, model in ways.items():
                for image in waiting if name == "static camera" else waiting[::EVERY]:
                    started = time.perf_counter()
                    detect(model, image, size)
                    seconds[name].append(time.perf_counter() - started)
            waiting.clear()
            mean = {name: f"{1000 * statistics.mean(values):.0f} ms" for name, values in seconds.items()}
            print(f"after {camera.report.frames} frames: {mean}; {camera.report}", file=sys.stderr, flush=True)

        for image in video_frames(video):
            waiting.append(image)
            if len(waiting) == STRETCH:
                run()
        if waiting:
            run()
    return seconds, camera


def cut_out(image: Image.Image, box: Sequence[float]) -> tuple[Image.Image, Image.Image]:
    """An object and its mask: the ellipse in its box, with soft edges."""
    left, top, right, bottom = (round(float(value)) for value in box)
    piece = image.crop((left, top, right, bottom))
    mask = Image.new("L", piece.size, 0)
    ImageDraw.Draw(mask).ellipse((0, 0, piece.width - 1, piece.height - 1), fill=255)
    return piece, mask.filter(ImageFilter.GaussianBlur(1.5))


def sequence(data: DetectionData, *, movers: int, speed: float, light: float, seed: int, frames: int) -> list[Labelled]:
    """Objects that move over a still image, and bounce off its borders."""
    generator = np.random.default_rng(seed)
    records = [record for record in data.records if len(record.boxes)]
    order = generator.permutation(len(records))
    ground = records[order[0]]
    picture = load_image(ground.path)
    pieces, labels = [], []
    for number in order[1 : movers + 1]:
        record = records[number]
        chosen = int(generator.integers(len(record.boxes)))
        pieces.append(cut_out(load_image(record.path), record.boxes[chosen]))
        labels.append(int(record.labels[chosen]))
    room = np.array([(picture.width - piece.width, picture.height - piece.height) for piece, _ in pieces])
    start, angle = generator.uniform(0, 1, (movers, 2)) * room, generator.uniform(0, 2 * np.pi, movers)
    step = speed * np.stack((np.cos(angle), np.sin(angle)), axis=1) * generator.uniform(0.5, 1.5, (movers, 1))
    result = []
    for frame in range(frames):
        places = np.abs((start + step * frame + room) % (2 * room) - room).round().astype(int)  # back and forth
        image, boxes = picture.copy(), list(ground.boxes)
        shown = list(ground.labels)
        for (piece, mask), (x, y), label in zip(pieces, places.tolist(), labels, strict=True):
            image.paste(piece, (x, y), mask)
            box = np.array([x, y, x + piece.width, y + piece.height], np.float32)
            kept = [k for k, other in enumerate(boxes) if covered(other, box) < 0.5]
            boxes, shown = [boxes[k] for k in kept] + [box], [shown[k] for k in kept] + [label]
        noisy = np.asarray(image, np.float32) + generator.normal(0, 2, (image.height, image.width, 3))
        noisy += light * np.sin(2 * np.pi * frame / frames)
        image = Image.fromarray(noisy.clip(0, 255).round().astype(np.uint8))
        result.append(Labelled(image, np.stack(boxes), np.array(shown, np.int64)))
    return result


def covered(box: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Share of ``box`` that ``other`` covers."""
    inner = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    return float(inner.clip(0).prod() / (box[2:] - box[:2]).prod())


def score(frames: Sequence[Labelled], found: Sequence[Detected], classes: Sequence[str]) -> dict[str, float | None]:
    records = [
        ImageRecord(
            Path(f"{number}.png"), number + 1, frame.image.width, frame.image.height, frame.boxes, frame.labels,
            np.zeros(len(frame.boxes), bool), (frame.boxes[:, 2:] - frame.boxes[:, :2]).prod(axis=1),
        )
        for number, frame in enumerate(frames)
    ]  # fmt: skip
    data = DetectionData("sequence", "val", list(classes), list(range(len(classes))), records, [])
    evaluator = CocoEvaluator(data)
    for number, detected in enumerate(found):
        evaluator.update(number, detected)
    return evaluator.summarize().metrics


def ap_row(
    name: str, detector: Detector, frames: Sequence[Labelled] | None, images: Sequence[Image.Image], size: int
) -> str:
    """A row of the table; without labels, the detections of normal prediction are used instead."""
    plain: Any = detector.opened.model.eval()
    camera = StaticCamera(plain)
    usual = [detect(plain, image, size) for image in images]
    found = [detect(camera, image, size) for image in images]
    if frames is None:
        least = 0.3 if any((one.scores >= 0.3).any() for one in usual) else 0.05
        sure = [(one, one.scores >= least) for one in usual]
        frames = [
            Labelled(image, one.boxes[kept].numpy(), one.labels[kept].numpy())
            for image, (one, kept) in zip(images, sure, strict=True)
        ]
    before, after = (score(frames, part, detector.classes) for part in (usual, found))
    difference = (after["AP"] or 0.0) - (before["AP"] or 0.0)
    boxes, report = sum(len(frame.boxes) for frame in frames), camera.report
    return (
        f"| {name} | {len(images)} | {boxes} | {before['AP']:.4f} | {after['AP']:.4f} | {difference:+.4f} | "
        f"{report.full} | {report.unchanged} | {report.computed / report.frames:.0%} | {report.largest_drift or 0:.3f} |"
    )


def time_lines(detector: Detector, video: str, size: int, exported_file: str | None) -> list[str]:
    seconds, camera = time_video(detector, video, size, exported_file)
    mean = {name: statistics.mean(values) for name, values in seconds.items()}
    rows = [
        f"| {name} | {len(values)} | {1000 * mean[name]:.0f} | {1000 * statistics.median(values):.0f} | "
        f"**{mean[name] / mean['plain']:.2f}** |"
        for name, values in seconds.items()
    ]
    faster = min(mean, key=lambda name: mean[name])
    header = ["", "| mode | frames | mean, ms | median, ms | time / plain |", "|---|---|---|---|---|"]
    return [
        f"Time at {size} px, on the whole video: {camera.report}.",
        *header,
        *rows,
        "",
        f"The fastest is: {faster}.",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video")
    parser.add_argument("--weights", required=True, help="checkpoint of a detector")
    parser.add_argument("--data", help="data set with its classes")
    parser.add_argument("--exported", help="exported file of the detector at this size (default: export it first)")
    parser.add_argument("--image-size", type=int, default=640)
    parser.add_argument("--frames", type=int, default=60, help="of each labelled sequence")
    parser.add_argument("--video-every", type=int, default=1, help="score every Nth frame of the video")
    parser.add_argument("--parts", nargs="+", choices=("time", "ap"), default=["time", "ap"])
    parser.add_argument("--write", action="store_true", help="write the dated result file")
    options = parser.parse_args()
    torch.set_num_threads(THREADS if "time" in options.parts else torch.get_num_threads())
    detector = Detector(options.weights, device="cpu")
    size = options.image_size
    lines = [
        "# A fixed camera: only what moves is computed",
        "",
        f"`python benchmarks/static_camera.py {Path(options.video).name} --weights CHECKPOINT --data DATA "
        f"--image-size {size} --parts {' '.join(options.parts)}`. {machine()}",
        "",
    ]
    if "time" in options.parts:
        lines += time_lines(detector, options.video, size, options.exported)
    if "ap" in options.parts:
        data = load_data(options.data, "val", classes=detector.classes)
        usual: Callable[..., list[Labelled]] = lambda **given: sequence(data, frames=options.frames, **given)  # noqa: E731
        slow, fast = usual(movers=3, speed=4, light=0, seed=0), usual(movers=4, speed=8, light=4, seed=1)
        pictures = list(video_frames(options.video))[:: options.video_every]
        lines += [
            f"AP at {size} px:",
            "",
            "| sequence | frames | boxes | plain | static | difference | full | unchanged | computed | largest drift |",
            "|---|---|---|---|---|---|---|---|---|---|",
            ap_row("three objects, slow", detector, slow, [frame.image for frame in slow], size),
            ap_row("four objects, faster, changing light", detector, fast, [frame.image for frame in fast], size),
            ap_row("the video, against normal prediction", detector, None, pictures, size),
        ]
    write_result(f"static_camera-{'-'.join(options.parts)}-{size}", lines, write=options.write)


if __name__ == "__main__":
    main()
