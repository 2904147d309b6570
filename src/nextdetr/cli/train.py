"""``nextdetr train``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from nextdetr.cli.common import Json, TrainOptions, Verbose, is_first_process, print_json, say, settings
from nextdetr.config import TrainConfig

__all__ = ["train"]


def train(
    *,
    options: Annotated[TrainOptions | None, Parameter(name="*")] = None,
    config: Annotated[str | None, Parameter(help="YAML file of settings; options take precedence.")] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Train a detector on labelled images.

    Example: `nextdetr train --data photos --minutes 30`
    """
    merged = settings(TrainConfig, options, config, command="train")
    from nextdetr.engine.log import shown_score
    from nextdetr.engine.train import train as run
    from nextdetr.measures import exported_meter

    result = run(merged, meter=exported_meter)
    if not is_first_process():
        return
    if json:
        print_json(result.to_json())
    else:
        score = shown_score(result.best["metrics"].get("AP"))
        say(f"{result.checkpoint}  best epoch {result.best['epoch']}  AP {score}")
