"""``nextdetr val``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from nextdetr.cli.common import AllowPartial, Json, Runtime, Verbose, Weights, open_told, print_json, say, settings
from nextdetr.config import ValConfig
from nextdetr.errors import ConfigError

__all__ = ["val"]


def val(
    model: Annotated[str, Parameter(help="A checkpoint, an exported file, a model YAML or a shipped name.")],
    *,
    options: Annotated[ValConfig | None, Parameter(name="*")] = None,
    weights: Weights = None,
    allow_partial: AllowPartial = False,
    runtime: Runtime = "auto",
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Score a detector with the COCO metrics, over all classes and for each.

    Example: `nextdetr val runs/nextdetr-atto-photos/best.safetensors --data photos --split test`.
    """
    merged = settings(ValConfig, options)
    if merged.data is None:
        raise ConfigError("scoring needs a data set: give --data with a folder or a YAML.")
    from nextdetr.engine.validate import score_detector

    opened = open_told(model, merged, weights=weights, allow_partial=allow_partial, runtime=runtime)
    result = score_detector(opened, merged)
    if json:
        print_json(result.to_json())
        return
    from nextdetr.data.raw import plural

    say(f"{plural(result.images, 'image')} of {result.data}, split {result.split}")
    for name, value in result.metrics.items():
        say(f"  {name:<10} {_number(value)}")
    width = max((len(name) for name in result.per_class), default=5)
    say(f"\n  {'class':<{width}}    boxes      AP    AP50")
    for name, row in result.per_class.items():
        say(f"  {name:<{width}}  {row['boxes']:>7}  {_number(row['AP'])}  {_number(row['AP50'])}")
    seconds = result.seconds_per_image
    say("\n  milliseconds an image: " + ", ".join(f"{part} {1000 * value:.1f}" for part, value in seconds.items()))


def _number(value: float | int | None) -> str:
    return "     -" if value is None else f"{value:6.4f}"
