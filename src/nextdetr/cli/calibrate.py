"""``nextdetr calibrate``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from nextdetr.cli.common import Json, Verbose, print_json, say, settings
from nextdetr.config import CalibrateConfig
from nextdetr.errors import ConfigError

__all__ = ["calibrate"]


def calibrate(
    model: Annotated[str, Parameter(help="A trained checkpoint or the folder of a run; the result is stored in it.")],
    *,
    options: Annotated[CalibrateConfig | None, Parameter(name="*")] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Choose a confidence with a guaranteed recall, and learn which images are unlike the training images.

    Both are stored in the checkpoint; `predict --confidence calibrated` uses them. Exit code 3: the recall is out of reach.

    Example: `nextdetr calibrate runs/nextdetr-atto-photos --data photos --recall 0.95`.
    """
    merged = settings(CalibrateConfig, options)
    if merged.data is None:
        raise ConfigError("a calibration needs a data set: give --data with a folder or a YAML.")
    from nextdetr.engine.calibrate import calibrate as run
    from nextdetr.inference.exported import open_any

    opened, _ = open_any(model)
    result = run(opened, merged)
    if json:
        print_json(result.to_json())
        return 0 if result.passed else 3
    from nextdetr.data.raw import plural

    images = plural(result.images, "image")
    if not result.passed:
        say(
            f"Recall {result.recall:g} is out of reach: with all detections {result.missed:.1%} of an image's objects are "
            f"missed on {images} (bound {result.bound:.1%}). The highest that can be promised is "
            f"{int(1000 * result.highest_recall) / 1000:g}. Nothing was stored."
        )
        return 3
    say(
        f"Confidence {result.threshold:.4f}: on average at most {result.bound:.1%} of the objects of a new image are "
        f"missed (IoU {result.iou:g}); {result.missed:.1%} on these {images} with objects"
    )
    if result.images_without_objects:
        say(f"  {plural(result.images_without_objects, 'image')} without objects left out")
    if result.unlike is None:
        say(f"  {result.unlike_reason}")
    else:
        say(
            f"  predict flags images unlike the {result.unlike['training_images']:,} training images; of images like those "
            f"of {result.split}, at most {result.unlike['share']:.1%}"
        )
    say(f"Stored in {result.model}; predict --confidence calibrated uses it")
    return 0
