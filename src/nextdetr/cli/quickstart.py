"""``nextdetr quickstart``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from nextdetr.cli.common import Json, Verbose, print_json, say, settings
from nextdetr.config import QuickstartConfig
from nextdetr.installation import to_paste

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
    from nextdetr.quickstart import CONFIDENCE, EPOCHS
    from nextdetr.quickstart import quickstart as run

    result = run(merged)
    if json:
        print_json(result.to_json())
        return
    from nextdetr.engine.log import shown_score
    from nextdetr.engine.report import report_target

    if result.epochs < EPOCHS:
        say(f"--minutes {merged.minutes:g} ended the training after {result.epochs} of {EPOCHS} epochs: more score higher.")
    metrics, photo = result.metrics, result.photograph
    wrong = photo["detections"] - photo["found"]
    say(f"Test images: AP50 {shown_score(metrics['AP50'])}, AP {shown_score(metrics['AP'])} (1 is perfect)")
    say("  AP50 counts a box as right if it overlaps a coin by half or more (IoU 0.5); AP averages over 0.5 to 0.95.")
    say(
        f"Photograph: {photo['found']} of {photo['coins']} coins found, with {photo['detections']} boxes of confidence "
        f"{CONFIDENCE:g} or more, {wrong or 'none'} of them wrong"
    )
    say(f"Picture with these boxes: {photo['picture']}")
    report = report_target(result.checkpoint)
    if report.is_file():
        say(f"Report, with scores, errors and the worst images: {report}")
    say(f"Next: {to_paste(['nextdetr', 'predict', result.checkpoint])} YOUR_IMAGE.jpg")
