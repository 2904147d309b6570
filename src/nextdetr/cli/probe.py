"""``nextdetr probe``."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter

from nextdetr.cli.common import Json, Verbose, print_json, say, settings
from nextdetr.config import ProbeConfig

__all__ = ["probe"]


def probe(
    weights: Annotated[str, Parameter(help="A file in any known layout, or convnextv2-atto for random weights.")],
    folder: Annotated[str, Parameter(help="Images in one subfolder per class.")],
    /,
    *,
    options: Annotated[ProbeConfig | None, Parameter(name="*")] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Evaluate a backbone by classification: a linear classifier on its features, and fine-tuning.

    Example: `nextdetr probe runs/pretrain/backbone.safetensors photos-by-class`.
    """
    config = settings(ProbeConfig, options)
    from nextdetr.analysis.probe import Score
    from nextdetr.analysis.probe import probe as run

    result = run(weights, folder, config, tell=_tell)
    if json:
        print_json(result.to_json())
        return
    for title, score in (("linear", result.linear), ("fine-tuned", result.fine_tuned)):
        if isinstance(score, Score):
            say(f"{title}: accuracy {score.accuracy:.4f}; rows are the true classes, columns the predicted ones")
            for name, row in zip(result.classes, score.confusion, strict=True):
                say(f"  {name:<20} " + " ".join(f"{count:>5}" for count in row))


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
