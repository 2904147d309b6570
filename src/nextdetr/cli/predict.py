"""``nextdetr predict``."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from nextdetr.cli.common import (
    AllowPartial,
    Json,
    Runtime,
    Verbose,
    Weights,
    print_json,
    say,
    settings,
    tell_point,
    tell_reports,
)
from nextdetr.config import PredictConfig

if TYPE_CHECKING:
    from nextdetr.detector import Detector
    from nextdetr.inference.predictor import Prediction
    from nextdetr.inference.tally import VideoTally

__all__ = ["predict"]

SAY_EVERY = 50  # frames of a video, rows of a table


def predict(
    model: Annotated[str, Parameter(help="A checkpoint, an exported file, or the folder of a run or an export.")],
    *sources: Annotated[str, Parameter(help="Images, folders, glob patterns, videos, cameras, addresses, - (stdin)")],
    options: Annotated[PredictConfig | None, Parameter(name="*")] = None,
    weights: Weights = None,
    allow_partial: AllowPartial = False,
    runtime: Runtime = "auto",
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Find objects in images, videos, cameras and streams; write annotated pictures and videos, JSON or YOLO label files.

    Example: `nextdetr predict runs/nextdetr-atto-photos/best.safetensors photos/new --save images json`.
    """
    merged = settings(PredictConfig, options)
    from nextdetr.detector import Detector
    from nextdetr.errors import ConfigError
    from nextdetr.files import new_directory_if_used

    if not sources:
        raise ConfigError("prediction needs images: name files, folders, a glob pattern or a video after the model.")
    detector = Detector(model, weights=weights, allow_partial=allow_partial, runtime=runtime, device=merged.device)
    tell_reports(detector.load_reports)
    tell_point(detector.opened, merged.latency, merged.latency_of)
    if merged.output is not None:
        _run(detector, list(sources), merged, merged.output, json=json)
        return
    with new_directory_if_used(Path("runs") / "predict") as output:
        _run(detector, list(sources), merged.model_copy(update={"output": output}), output, json=json)


def _run(detector: Detector, sources: list[str], config: PredictConfig, output: Path, *, json: bool) -> None:
    """Predict, write, and say what was found."""
    from nextdetr.cli.progress import VideoProgress
    from nextdetr.inference.camera_report import CameraReport
    from nextdetr.inference.sources import skipped_as
    from nextdetr.inference.tally import Tally

    table = config.is_table  # has any number of images, so that nothing of them is kept here
    results, looked_at, skipped = [], 0, Counter[str]()
    camera, tally = CameraReport(), Tally()
    with VideoProgress(quiet=json) as progress:
        for item in detector.stream(_given(sources), config, skipped=skipped, camera_report=camera):
            looked_at += 1
            video = tally.add(item)
            if video is not None:
                progress.update(video)
            if json and not table:
                results.append(item.to_json())
            if item.problem is None and not json and _is_said(item, video, looked_at, table):
                say(_line(item))
    if json:
        written: dict[str, Any] = {}
        if table:
            written = {"table": str(output), "looked_at": looked_at, "unreadable": skipped["unreadable"]}
        if config.static_camera:
            written["static_camera"] = camera.to_json()
        if tally.videos:
            written["videos"] = [video.to_json() for video in tally.videos]
        print_json({"command": "predict", "images": results, "skipped": dict(+skipped), **written})
    else:
        for line in (line for video in tally.videos for line in video.lines()):
            say(line)
        if config.static_camera:
            say(f"Static camera: {camera}")
        if skipped:
            say(f"Skipped: {', '.join(skipped_as(*entry) for entry in skipped.items())}")
        say(f"Written to {output}" + ("" if config.features is None else f", features to {config.features}"))


def _given(sources: list[str]) -> list[Any]:
    """Return the sources with the image that standard input holds in place of ``-``."""
    if all(source.strip() != "-" for source in sources):
        return list(sources)
    from nextdetr.errors import DataError
    from nextdetr.inference.web import MAX_BYTES
    from nextdetr.pictures import Encoded

    if sys.stdin.isatty():
        raise DataError("- is an image from standard input, and nothing is sent there: … | nextdetr predict MODEL -")
    content = sys.stdin.buffer.read(MAX_BYTES + 1)
    if not content:
        raise DataError("- is an image from standard input, which is empty.")
    if len(content) > MAX_BYTES:
        raise DataError(f"the image from standard input is larger than {MAX_BYTES >> 20} MB: name its file.")
    image = Encoded(content, "stdin")
    return [image if source.strip() == "-" else source for source in sources]


def _is_said(item: Prediction, video: VideoTally | None, number: int, table: bool) -> bool:
    """Whether the result gets a line: each image does, of a table and of a video without an end one now and then."""
    if table:
        return number % SAY_EVERY == 1
    return item.frame is None or (video is not None and not video.expected and item.frame % SAY_EVERY == 0)


def _line(item: Prediction) -> str:
    from nextdetr.files import path_text
    from nextdetr.inference.shown import listed

    found = listed(item.counts())
    place = path_text(item.path) + ("" if item.frame is None else f", frame {item.frame}")
    if item.unlikeness is not None and item.unlikeness > 1:
        found += f"; unlike the training images ({item.unlikeness:.1f} times the limit)"
    return f"{place}: {found}"
