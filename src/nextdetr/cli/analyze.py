"""``nextdetr analyze``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from nextdetr.cli.common import Json, Verbose, print_json, say
from nextdetr.errors import ConfigError

__all__ = ["app"]

app = App(name="analyze", help="Analyse backbones.")


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


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
