"""``nextdetr quickstart``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from nextdetr.cli.common import Json, Verbose, print_json, say, settings
from nextdetr.config import QuickstartConfig

__all__ = ["quickstart"]


def quickstart(
    *,
    options: Annotated[QuickstartConfig | None, Parameter(name="*")] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Train on real coins cut out of a photograph, and find the coins in the untouched photograph. Downloads nothing.

    Example: `nextdetr quickstart`.
    """
    merged = settings(QuickstartConfig, options)
    from nextdetr.quickstart import EPOCHS
    from nextdetr.quickstart import quickstart as run

    result = run(merged)
    if json:
        print_json(result.to_json())
        return
    if result.epochs < EPOCHS:
        say(f"The limit of {merged.minutes:g} minutes (--minutes) ended training after {result.epochs} of {EPOCHS} epochs.")
    metrics = result.metrics
    say(f"held-out composites: AP {metrics['AP']:.4f}, AP50 {metrics['AP50']:.4f}")
    photo = result.photograph
    say(f"untouched photograph: {photo['found']} of {photo['coins']} coins found, {photo['detections']} detections")
    say(f"picture: {photo['picture']}")
    say(f"Next: nextdetr predict {result.checkpoint} YOUR_IMAGE.jpg")
