"""``nextdetr info``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from nextdetr.cli.common import Json, Verbose, print_json, say

__all__ = ["info"]


def info(
    model: Annotated[str, Parameter(help="A shipped name, a model YAML or a checkpoint.")],
    *,
    image_size: Annotated[int, Parameter(help="Side of the square input, pixels, that GFLOP is counted for.")] = 640,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show a model's rows, parameters and GFLOP (2 per multiply-add).

    Example: `nextdetr info rtdetr-l-convnextv2-atto`.
    """
    from nextdetr.weights.start import open_detector

    if image_size < 32 or image_size % 32:
        from nextdetr.errors import ConfigError

        raise ConfigError(f"--image-size must be a multiple of 32, at least 32 (given: {image_size}).")
    from nextdetr.models.summary import summarize

    opened = open_detector(model)[0]
    summary = summarize(opened.model, image_size)
    if json:
        print_json({"command": "info", "model": model, **summary.to_json()})
        return
    say(f"{'row':>4}  {'from':<14} {'n':>2} {'parameters':>12}  {'module':<18} arguments")
    for row in summary.rows:
        say(f"{row.index:>4}  {row.from_!s:<14} {row.repeats:>2} {row.parameters:>12,}  {row.module:<18} {row.arguments}")
    say(
        f"\n{model}: {summary.parameters:,} parameters ({summary.trainable_parameters:,} trained), "
        f"{summary.gflop:.2f} GFLOP at {image_size} px"
    )
    if opened.trained:
        say(f"classes: {', '.join(opened.classes)}; image size {opened.image_size}; metrics {opened.metadata['metrics']}")
