"""``nextdetr analyze``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from nextdetr.cli.common import AllowPartial, Json, Verbose, Weights, print_json, say, tell_reports
from nextdetr.errors import ConfigError

__all__ = ["app"]

app = App(name="analyze", help="Analyse a backbone (collapse of its channels) or a detector (where its attention reads).")


@app.command
def collapse(
    weights: Annotated[
        list[str],
        Parameter(
            help="Files in any known layout, or convnextv2-atto and the like for random weights; "
            "without --images, then a folder of images."
        ),
    ],
    /,
    *,
    images: Annotated[list[str] | None, Parameter(help="Folders of images or data sets, as for pretrain.")] = None,
    image_size: Annotated[int, Parameter(help="Side of the square input, pixels.")] = 224,
    limit: Annotated[int, Parameter(help="Maximum number of images.")] = 200,
    output: Annotated[Path, Parameter(help="Folder for the pictures.")] = Path("runs/collapse"),
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Measure feature collapse: the cosine distance between the channels of each layer, as in the ConvNeXt V2 paper.

    Example: `nextdetr analyze collapse v1.safetensors v2.safetensors convnextv2-atto --images photos`.
    """
    from nextdetr.analysis.collapse import analyze_collapse

    if images is None:
        *weights, last = weights
        if not weights:
            raise ConfigError(f"give weights and images: nextdetr analyze collapse {last} --images FOLDER.")
        images = [last]
    report = analyze_collapse(
        weights, images, image_size=image_size, limit=limit, output=output,
        tell=_tell,
    )  # fmt: skip
    if json:
        print_json(report.to_json())
        return
    for name, layers in report.layers.items():
        say(f"{name}\n  {'block':<12} {'channels':>8} {'distance':>9} {'dead':>6} {'saturated':>10}")
        for layer in layers:
            say(
                f"  {layer.name:<12} {layer.channels:>8} {layer.distance:>9.4f} {layer.dead:>6.1%} {layer.saturated:>10.1%}"
            )
    say(f"curve: {report.curve}; maps: {', '.join(report.grids.values())}")


@app.command
def attention(
    model: Annotated[str, Parameter(help="A trained checkpoint, or the folder of a run.")],
    sources: Annotated[list[str], Parameter(help="Image files, folders or glob patterns.")],
    /,
    *,
    output: Annotated[Path, Parameter(help="Folder for the pictures.")] = Path("runs/attention"),
    detections: Annotated[int, Parameter(help="Maximum number of detections per image, most confident first.")] = 6,
    layer: Annotated[int | None, Parameter(help="Decoder layer, from 1 (default: the last).")] = None,
    image_size: Annotated[
        int | None, Parameter(help="Side of the square input, pixels (default: the checkpoint's).")
    ] = None,
    device: Annotated[str | None, Parameter(help="Device: cpu, cuda, cuda:1, mps (default: the best).")] = None,
    weights: Weights = None,
    allow_partial: AllowPartial = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Draw where the decoder reads to find each object: the points of its deformable attention.

    Example: `nextdetr analyze attention runs/train/best.safetensors photo.jpg`.
    """
    from nextdetr.analysis.attention import analyze_attention
    from nextdetr.inference.exported import open_any
    from nextdetr.inference.opened import settle, warn_of_random_weights

    opened, reports = open_any(model, weights=weights, allow_partial=allow_partial)
    tell_reports(reports)
    warn_of_random_weights(opened, weights=weights is not None)
    settled = settle(opened, device=device, image_size=image_size)
    pictures = []
    for picture in analyze_attention(settled, sources, output=output, detections=detections, layer=layer):
        pictures.append(picture.to_json(opened.classes))
        if not json:
            say(f"{picture.path}: decoder layer {picture.layer}, {picture.picture}")
    if json:
        print_json({"command": "analyze attention", "model": model, "images": pictures})


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
