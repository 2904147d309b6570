"""``nextdetr report``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from nextdetr.cli.common import AllowPartial, Json, Runtime, Verbose, Weights, open_told, print_json, say, settings
from nextdetr.config import ReportConfig
from nextdetr.errors import ConfigError

__all__ = ["report"]


def report(
    model: Annotated[str, Parameter(help="A run folder, a checkpoint, an exported file, or a model with --weights.")],
    *,
    options: Annotated[ReportConfig | None, Parameter(name="*")] = None,
    weights: Weights = None,
    allow_partial: AllowPartial = False,
    runtime: Runtime = "auto",
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show where a detector fails: one HTML file with scores, thresholds, kinds of error, calibration and pictures.

    Example: `nextdetr report runs/nextdetr-atto-photos --data photos`.
    """
    merged = settings(ReportConfig, options)
    if merged.data is None:
        raise ConfigError("a report needs a data set: give --data with a folder or a YAML.")
    from nextdetr.engine.report import report as run

    opened = open_told(model, merged, weights=weights, allow_partial=allow_partial, runtime=runtime)
    result = run(opened, merged)
    if json:
        print_json(result.to_json())
        return
    from nextdetr.data.raw import plural

    score = result.metrics["AP"]
    shown = "-" if score is None else f"{score:.4f}"
    say(f"AP {shown} on {plural(result.images, 'image')} of {result.data}, split {result.split}")
    for name, error in result.errors.items():
        say(
            f"  {name:<11} {error['count']:>7,} error{' ' if error['count'] == 1 else 's'} cost {error['cost']:.3f} of AP50"
        )
    say(f"Written to {result.output}")
