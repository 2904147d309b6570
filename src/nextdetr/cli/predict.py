"""``nextdetr predict``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from nextdetr.cli.common import Json, Verbose, Weights, print_json, say, settings
from nextdetr.config import PredictConfig

__all__ = ["predict"]


def predict(
    model: Annotated[str, Parameter(help="A checkpoint, as nextdetr train writes it, or an exported file.")],
    *sources: Annotated[str, Parameter(help="Image files, folders or glob patterns.")],
    options: Annotated[PredictConfig | None, Parameter(name="*")] = None,
    weights: Weights = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Find objects in images; write annotated pictures, COCO results or YOLO label files.

    Example: `nextdetr predict runs/nextdetr-atto-photos/best.safetensors photos/new --save images json`.
    """
    merged = settings(PredictConfig, options)
    from nextdetr.detector import Detector
    from nextdetr.errors import ConfigError
    from nextdetr.files import new_directory
    from nextdetr.inference.outputs import save_predictions

    if not sources:
        raise ConfigError("prediction needs images: name files, folders or a glob pattern after the model.")
    output = merged.output or new_directory(Path("runs") / "predict")
    predictions = Detector(model, weights=weights).stream(list(sources), merged)
    results = []
    for item in save_predictions(predictions, output, merged.save):
        results.append(item.to_json())
        if item.problem is not None:
            sys.stderr.write(f"nextdetr: skipped: {item.problem}\n")
        elif not json:
            counts = item.counts()
            found = ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing"
            say(f"{item.path}: {found}")
    if json:
        print_json({"command": "predict", "images": results})
    else:
        say(f"Written to {output}" + ("" if merged.features is None else f", features to {merged.features}"))
